"""Files that are hostile, damaged or incomplete: one clear error each, and nothing is run."""

import json
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pretrained import small_files as small
from vit_sae_plugin.pretrained import (
    FORMATS,
    UnreadableFileError,
    UnsafeFileError,
    load_pretrained_sae,
    read_pretrained,
    read_tensors,
)

FIRST_OF_KIND = {file.kind: file for file in reversed(small.SMALL_FILES)}


class Calls:
    """Pickles as a call of a function with these arguments."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def written_by_name(module, name, *args):
    """A pickle that calls ``module.name(*args)``, whether or not it can be imported here."""
    body = b"".join(pickle.dumps(arg, protocol=0)[:-1] for arg in args)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + body + b"tR."


def hostile_pickles(target: Path):
    """Name → the bytes of a pickle that would make ``target`` if any of it were run."""
    touch = f"touch {target}"
    return {
        "os.system": pickle.dumps(Calls(os.system, touch)),
        "eval": pickle.dumps(Calls(eval, f"open({str(target)!r}, 'w')")),
        "exec": pickle.dumps(Calls(exec, f"open({str(target)!r}, 'w')")),
        "open": pickle.dumps(Calls(open, str(target), "w")),
        "Path.touch": pickle.dumps(Calls(Path.touch, target)),
        "numpy.save": pickle.dumps(Calls(np.save, str(target), [1])),
        "torch.save": pickle.dumps(Calls(torch.save, [1], str(target))),
        "torch.load": pickle.dumps(Calls(torch.load, str(target))),
        "subprocess": written_by_name("subprocess", "Popen", ["touch", str(target)]),
        "getattr": written_by_name("builtins", "getattr", "a", "upper"),
        "importlib": written_by_name("importlib", "import_module", "antigravity"),
        "pip": written_by_name("pip._internal.cli.main", "main", ["install", "x"]),
        "runpy": written_by_name("runpy", "run_path", str(target)),
        "torch.hub": written_by_name("torch.hub", "load", "a/b", "c"),
        "class with arguments": written_by_name("some.project", "Config", 1),
        "dotted name": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(touch)])
        + touch.encode() + b"\x85R.",
        # objects made by opcodes other than REDUCE
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(U\x05touchtq\x00\x81.",
        "OBJ": b"(csubprocess\nPopen\nU\x05touch" + b"o.",
        "INST": b"(S'touch'\nisubprocess\nPopen\n.",
        # attributes of what the reader itself lends
        "BUILD on a builder": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
        b"}(U\x08__code__U\x01xub.",
        "BUILD on a storage": b"\x80\x02ctorch\nFloatStorage\nN}U\x04nameU\x01xs\x86b.",
    }  # fmt: skip


HOSTILE = list(hostile_pickles(Path("x")))


def zipped(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3")


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("container", ["pickle", "zip", "old"])
def test_hostile_pickles_are_not_run(name, container, tmp_path):
    target = tmp_path / "it-ran"
    data = hostile_pickles(target)[name]
    path = tmp_path / "weights.pt"
    if container == "zip":
        zipped(path, data)
    elif container == "old":
        magic = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in magic) + data)
    else:
        path.write_bytes(data)
    with pytest.raises(
        UnsafeFileError, match=r"weights\.pt isn't read: it asks to .*nothing was run"
    ) as caught:
        read_tensors(path)
    assert str(caught.value).startswith("weights.pt isn't read: ")
    assert "\n" not in str(caught.value)
    print(f"{name} in {container}: {caught.value}")
    assert not target.exists()


def named_file(small_file, folder: Path) -> Path:
    """The file with the weights that a small file consists of."""
    place = small_file.write(folder)
    if place.is_file():
        return place
    found = [
        path
        for path in place.rglob("*")
        if path.suffix in (".pt", ".pth", ".pkl", ".gz", ".safetensors")
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_no_reader_runs_a_hostile_file(kind, tmp_path):
    small_file = FIRST_OF_KIND[kind]
    path = named_file(small_file, tmp_path)
    target = tmp_path / "it-ran"
    data = pickle.dumps({"state_dict": Calls(os.system, f"touch {target}")})
    if kind == "saev":
        data = json.dumps(small.saev_header(5, "Relu")).encode() + b"\n" + data
    path.write_bytes(data)
    wanted = UnreadableFileError if path.suffix == ".safetensors" else UnsafeFileError
    with pytest.raises(wanted) as caught:
        load_pretrained_sae(f"{kind}:{path}", **small_file.options)
    assert str(caught.value).startswith(f"{kind}:")
    assert not target.exists()


@pytest.mark.parametrize("kind", sorted(FORMATS))
@pytest.mark.parametrize("share", [0.0, 0.4, 0.98])
def test_a_truncated_file_is_one_clear_line(kind, share, tmp_path):
    small_file = FIRST_OF_KIND[kind]
    path = named_file(small_file, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadableFileError, match="can't be read as a file of tensors") as caught:
        load_pretrained_sae(f"{kind}:{path}", **small_file.options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".pt", ".pkl", ".pkl.gz", "old"])
@pytest.mark.parametrize("seed", range(12))
def test_damaged_bytes_are_one_kind_of_error_or_harmless(ending, seed, tmp_path):
    old = ending == "old"
    path = small.write_patchsae(tmp_path, ".pt" if old else ending, old=old)
    generator = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for place in generator.integers(0, len(data), size=3):
        data[place] = generator.integers(0, 256)
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(ValueError):  # all else fails the test
            read_pretrained("patchsae", path)


def refused(place, kind, match, **options):
    with pytest.raises(ValueError, match=match) as caught:
        load_pretrained_sae(f"{kind}:{place}", **options)
    assert str(caught.value).startswith(f"{kind}:")
    assert "\n" not in str(caught.value)


STATISTICS = {"input_statistics": {"mean": 0.0, "scale": 1.0}}


@pytest.mark.parametrize(
    ("kind", "write", "options", "match"),
    [
        # other shapes than the settings say
        (
            "patchsae",
            lambda f: small.write_patchsae(f, d_sae=99),
            {},
            "say d_sae=99, .*10",
        ),
        ("prisma", small.write_prisma(d_in=7), {}, "settings say d_in=7, .*d_in=6"),
        (
            "saev",
            small.write_saev(
                {
                    "schema": 2,
                    "cfg": {"d_vit": 6, "exp_factor": 4, "activation": {"cls": "Relu"}},
                }
            ),
            {},
            "d_sae=24",
        ),
        ("clipscope", lambda f: small.write_clipscope(f, n_features=11), {}, "d_sae=11"),
        ("dictionary_learning", small.write_dictionary("AutoEncoder", dict_size=5), {}, "d_sae=5"),
        ("sparsify", small.write_sparsify(num_latents=12), {}, "d_sae=12"),
        ("visaebench", small.write_visaebench("topk", d_model=5), STATISTICS, "d_in=5"),
        ("clipscope", lambda f: small.write_clipscope(f, k=11), {}, "k is 11; want 1 to 10"),
        (
            "dictionary_learning",
            small.write_dictionary("AutoEncoder", tensors={"bias": torch.zeros(4)}),
            {},
            r"b_dec is of shape \(4,\); want \(6,\)",
        ),
        (
            "dictionary_learning",
            small.write_dictionary("AutoEncoder", tensors={"bias": torch.full((6,), torch.nan)}),
            {},
            "b_dec holds NaN",
        ),
        (
            "dictionary_learning",
            small.write_dictionary("AutoEncoder", tensors={"W_skip": torch.zeros(4)}),
            {},
            "also holds W_skip",
        ),
        # an unknown activation, or none
        ("prisma", small.write_prisma(activation_fn_str="gelu"), {}, "activation is 'gelu'; want"),
        ("prisma", small.write_prisma(without="activation_fn_str"), {}, "state activation="),
        ("prisma", small.write_prisma(activation_fn_str="topk"), {}, "nothing says k; state"),
        ("prisma", small.write_prisma(architecture="jumprelu"), {}, "architecture is 'jumprelu'"),
        ("prisma", small.write_prisma(without="normalize_activations"), {}, "don't say how rows"),
        (
            "prisma",
            small.write_prisma(normalize_activations="whiten"),
            {},
            "by 'whiten'",
        ),
        ("prisma", small.write_prisma(is_transcoder=True), {}, "is a transcoder"),
        ("saev", small.write_saev(small.saev_header(5, "Gelu")), {}, "activation is 'Gelu'"),
        ("saev", small.write_saev(small.saev_header(9, "Relu")), {}, "schema is 9"),
        ("saev", small.write_saev(small.saev_header(4, "TopK")), {}, "nothing says top_k"),
        ("saev", small.write_saev(small.saev_header(1, "Relu")), {}, "state subtract_b_dec="),
        ("clipscope", lambda f: small.write_clipscope(f, k=None), {}, "nothing says k"),
        ("overcomplete", small.write_overcomplete(), {}, "a state dict doesn't say; state"),
        ("overcomplete", small.write_overcomplete(), {"activation": "elu"}, "is 'elu'; want"),
        ("overcomplete", small.write_overcomplete(), {"activation": "topk"}, "nothing says k"),
        (
            "overcomplete",
            small.write_overcomplete_module,
            {"activation": "topk"},
            "the file is a 'batchtopk' SAE",
        ),
        (
            "overcomplete",
            small.write_overcomplete(atoms=3 * small.ATOMS),
            {"activation": "relu"},
            "nothing says how they are scaled; state normalization=",
        ),
        ("overcomplete", small.write_archetypal, {"activation": "relu"}, "state delta="),
        ("msae", small.write_msae("GELU_003_False_False_0.0"), {}, "activation is 'GELU'"),
        ("msae", small.write_msae("ReLU_003_True_False_0.0"), {}, "says tied=True"),
        ("msae", small.write_msae("JumpReLU_1_False_False_3.0"), {}, "has a soft cap"),
        (
            "dictionary_learning",
            small.write_dictionary("AutoEncoder", dict_class="SSAE"),
            {},
            "'SSAE'",
        ),
        ("dictionary_learning", small.write_dictionary("AutoEncoder", dict_class=None), {}, "None"),
        ("sparsify", small.write_sparsify(activation="groupmax"), {}, "activation is 'groupmax'"),
        ("sparsify", small.write_sparsify(k=None), {}, "nothing says k"),
        ("sparsify", small.write_sparsify(skip_connection=True), {}, "skip_connection is on"),
        ("visaebench", small.write_visaebench("relu6"), STATISTICS, "activation is 'relu6'"),
        ("patchsae", lambda f: small.write_patchsae(f, gated_sae=True), {}, "gated_sae is True"),
        # no threshold
        (
            "saev",
            small.write_saev(small.saev_header(3, "BatchTopK", top_k=3)),
            {},
            "state threshold=",
        ),
        (
            "overcomplete",
            small.write_overcomplete(),
            {"activation": "batchtopk"},
            "state threshold=",
        ),
        (
            "dictionary_learning",
            small.write_dictionary("BatchTopKSAE", tensors={"threshold": torch.tensor(-1.0)}),
            {},
            "threshold is -1, that is, never set",
        ),
        ("msae", small.write_msae("BatchTopK_4_False_False_0.0"), {}, "state threshold="),
        (
            "visaebench",
            small.write_visaebench("batchtopk", threshold=None),
            STATISTICS,
            "state threshold=",
        ),
        # no statistics of the input
        ("saev", small.write_old_saev, {}, "centred and scaled .*state input_statistics="),
        ("visaebench", small.write_visaebench("topk"), {}, "state input_statistics="),
        (
            "msae",
            small.write_msae("ReLU_003_False_False_0.0", scaling_factor=None),
            {},
            "no 'mean_center' and 'scaling_factor'",
        ),
        (
            "msae",
            small.write_msae("ReLU_003_False_False_0.0", scaling_factor=0.0),
            {},
            "scale is 0.0; want a positive",
        ),
        (
            "visaebench",
            small.write_visaebench("topk"),
            {"input_statistics": {"mean": [0.0, 1.0], "scale": 1.0}},
            "mean has 2 numbers; want 6",
        ),
        (
            "visaebench",
            small.write_visaebench("topk"),
            {"input_statistics": {"mean": 0.0}},
            "no 'mean' and 'scale'",
        ),
    ],
)
def test_what_is_missing_or_contradicts_is_never_guessed(kind, write, options, match, tmp_path):
    refused(write(tmp_path), kind, match, **options)


def test_rows_as_they_are_can_be_stated(tmp_path):
    place = small.write_visaebench("topk")(tmp_path)
    sae = load_pretrained_sae(f"visaebench:{place}", input_statistics="none")
    assert sae.cfg.metadata.input_statistics is None


def test_statistics_can_lie_in_a_file(tmp_path):
    place = small.write_visaebench("topk")(tmp_path)
    np.savez(tmp_path / "rows.npz", mean=small.MEAN.numpy(), std=np.float32(0.5))
    sae = load_pretrained_sae(f"visaebench:{place}", input_statistics=tmp_path / "rows.npz")
    statistics = sae.cfg.metadata.input_statistics
    assert statistics["scale"] == 2.0
    assert statistics["mean"] == pytest.approx(small.MEAN.tolist())


def test_an_msae_file_with_another_name(tmp_path):
    path = small.write_msae("ReLU_003_False_False_0.0")(tmp_path)
    path = path.rename(tmp_path / "best.pth")
    refused(path, "msae", "settings are in its name, and 'best.pth' isn't .*latents")


def test_settings_files_that_are_missing_or_damaged(tmp_path):
    small.write_prisma()(tmp_path)
    (tmp_path / "config.json").write_text('{"d_in":')
    refused(tmp_path, "prisma", "config.json is damaged")
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "prisma", "no config.json beside it")


def test_a_folder_of_sae_lens_itself(tmp_path):
    from sae_lens import StandardSAE, StandardSAEConfig

    StandardSAE(StandardSAEConfig(d_in=4, d_sae=8)).save_model(tmp_path)
    refused(tmp_path, "prisma", "a folder of SAELens itself; open it by SAE.load_from_disk")


ODD_VALUES = (None, "x", -1, 0, 1.5, [], {}, True, float("inf"), float("nan"), 10**30, [[[]]])


@pytest.mark.parametrize("kind", ["prisma", "dictionary_learning", "sparsify", "visaebench"])
def test_odd_settings_are_an_error_or_harmless(kind, tmp_path):
    small_file = FIRST_OF_KIND[kind]
    small_file.write(tmp_path)
    (path,) = [*tmp_path.rglob("config.json"), *tmp_path.rglob("cfg.json")]
    settings = json.loads(path.read_text())
    inner = settings.get("trainer", settings)
    for name in list(inner):
        kept = inner[name]
        for odd in ODD_VALUES:
            inner[name] = odd
            path.write_text(json.dumps(settings))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with suppress(ValueError):  # all else fails the test
                    read_pretrained(kind, tmp_path, **small_file.options)
        inner[name] = kept


@pytest.mark.parametrize(
    ("source", "options", "match"),
    [
        ("prisma:x", {"dtype": "float33"}, "dtype is 'float33'; want one of float32"),
        ("prism:x", {}, r"'prism' is no kind of SAE; want .*\(near: prisma\)"),
        ("weights.pt", {}, "'weights.pt' is no kind of SAE"),
        ("prisma:", {}, "with a path or repository"),
        ("prisma:x", {"activatio": "relu"}, r"no option 'activatio'; .*\(near: activation\)"),
    ],
)
def test_a_source_that_names_nothing(source, options, match):
    with pytest.raises(ValueError, match=match):
        load_pretrained_sae(source, **options)


def test_places_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_pretrained_sae(f"prisma:{tmp_path}/nothing")
    with pytest.raises(FileNotFoundError, match="holds no file named like"):
        load_pretrained_sae(f"prisma:{tmp_path}")
    for name in ("a.pt", "b.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"2 files named like \*\.pt: it has a\.pt, b\.pt"):
        load_pretrained_sae(f"clipscope:{tmp_path}")


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((1 << 40,), (0,), 0), ((4, 4), (4, 1), 0), ((2,), (1,), 5)]
)
def test_tensors_beyond_their_storage_are_refused(size, stride, offset, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"x": torch.zeros(6)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(entries)).split("/")[0]

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Kept(), offset, size, stride, False, None)

    class Kept:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if isinstance(thing, Kept):
                return ("storage", torch.FloatStorage, "0", "cpu", 6)
            return None

    import io

    data = io.BytesIO()
    Pickler(data, protocol=2).dump({"x": Tensor()})
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in (entries | {f"{folder}/data.pkl": data.getvalue()}).items():
            archive.writestr(name, value)
    with pytest.raises(UnreadableFileError, match="its storage holds 6"):
        read_tensors(path)


def test_small_files_that_unfold_without_end(tmp_path):
    lists = [1]
    for _ in range(80):
        lists = [lists, lists]
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"a": lists}))
    assert set(read_tensors(path)) == {"a"}
    loop: list = []
    loop.append(loop)
    path.write_bytes(pickle.dumps(loop))
    with pytest.raises(UnreadableFileError, match="holds itself"):
        read_tensors(path)


def test_a_compressed_archive_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}) + bytes(1 << 20))
    with pytest.raises(UnreadableFileError, match="compressed"):
        read_tensors(path)


def test_programs_are_not_tensors(tmp_path):
    path = tmp_path / "weights.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(UnsafeFileError, match="TorchScript"):
        read_tensors(path)


@pytest.mark.parametrize("old", [False, True])
def test_tensors_are_read_as_pytorch_reads_them(old, tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    values = {
        "plain": base,
        "transposed": base.T,
        "part": base[1:, 1:3],
        "half": base.half(),
        "brain": base.bfloat16(),
        "whole": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(base),
        "array": np.arange(6, dtype=np.float64).reshape(2, 3),
        "scalar": np.float32(1.5),
        "others": [1, "two", 3.0, None, (4, {5})],
    }
    path = tmp_path / "values.pt"
    torch.save(values, path, _use_new_zipfile_serialization=not old)
    read = read_tensors(path)
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            assert read[name].dtype == value.dtype
            assert torch.equal(read[name], value)
    assert torch.equal(read["array"], torch.from_numpy(values["array"]))
    assert read["scalar"] == 1.5
    assert read["others"] == values["others"]


def test_numpy_files_with_objects_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Calls(os.system, "true")], dtype=object))
    with pytest.raises(UnreadableFileError, match="can't be read"):
        read_tensors(tmp_path / "a.npy")


def test_classes_that_are_lent_stay_as_they_are(tmp_path):
    # sets OrderedDict.items, were the class not closed to it
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02ccollections\nOrderedDict\nN}U\x05itemsU\x01xs\x86b.")
    with pytest.raises(UnreadableFileError):
        read_tensors(path)
    assert callable(OrderedDict.items)


def test_a_damaged_safetensors_file(tmp_path):
    path = tmp_path / "sae.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(UnreadableFileError, match=r"sae\.safetensors can't be read"):
        read_tensors(path)
