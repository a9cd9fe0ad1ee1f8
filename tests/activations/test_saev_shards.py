"""A folder by saev's protocol 2.1, written by hand, with a pickle that must not run."""

import base64
import hashlib
import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import SAE

from tests.cli.command import vit_sae
from vit_sae_plugin.activations.saev_shards import SaevShards
from vit_sae_plugin.activations.saev_store import SaevStore

LAYERS, N_PATCHES, WIDTH = [4, 10], 4, 3
EXAMPLES = (5, 5, 2)
HOOK = "blocks.10.hook_resid_post"


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def write_folder(root: Path, *, metadata=None, shards=None, name=None) -> Path:
    """What saev writes of 12 images; each number says its example, layer, token and dimension."""
    trap = base64.b64encode(pickle.dumps(Trap(root / "sprung"))).decode()
    values = {
        "family": "clip",
        "ckpt": "ViT-B-16/openai",
        "layers": LAYERS,
        "content_tokens_per_example": N_PATCHES,
        "cls_token": True,
        "d_model": WIDTH,
        "n_examples": sum(EXAMPLES),
        "max_tokens_per_shard": 5 * len(LAYERS) * (N_PATCHES + 1),
        "data": trap,
        "dataset": "/data/photos",
        "pixel_agg": None,
        "dtype": "float32",
        "protocol": "2.1",
    } | (metadata or {})
    values = {key: value for key, value in values.items() if value != "left out"}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    folder = root / (name or hashlib.sha256(text.encode()).hexdigest())
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps(values, indent=2))
    entries = [{"name": f"acts{n:06}.bin", "n_examples": size} for n, size in enumerate(EXAMPLES)]
    (folder / "shards.json").write_text(json.dumps(entries if shards is None else shards))
    numbers = all_numbers()
    for shard, first in enumerate((0, 5, 10)):
        held = np.zeros((5, *numbers.shape[1:]), dtype="<f4")  # each file is laid out for five
        held[: EXAMPLES[shard]] = numbers[first : first + EXAMPLES[shard]]
        (folder / f"acts{shard:06}.bin").write_bytes(held.tobytes())
    return folder


def all_numbers() -> np.ndarray:
    example, layer, token, dim = np.ogrid[:12, :2, : N_PATCHES + 1, :WIDTH]
    return (1000 * example + 100 * layer + 10 * token + dim).astype(np.float32)


def store(folder: Path, **settings) -> SaevStore:
    chosen = {"hook_name": HOOK, "train_batch_size_tokens": 8, "n_batches_in_buffer": 3}
    return SaevStore(SaevShards(folder), **chosen | settings)


def take(rows: SaevStore, n: int) -> torch.Tensor:
    return torch.cat([next(rows) for _ in range(n)])


def test_rows_are_where_the_protocol_says_and_no_pickle_is_opened(tmp_path):
    folder = write_folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shards = SaevShards(folder)
    assert (shards.n_tokens, shards.n_examples, shards.layers) == (5, 12, (4, 10))
    for example in range(12):
        for at, layer in enumerate(LAYERS):
            np.testing.assert_array_equal(
                shards.example(example, layer), all_numbers()[example, at]
            )
    # epochs: 12 × 4 patches of layer 10, each once
    rows = take(store(folder, token_kind="patches"), 12)
    for epoch in (rows[:48], rows[48:]):
        expected = all_numbers()[:, 1, 1:].reshape(-1, WIDTH)
        np.testing.assert_array_equal(np.sort(epoch[:, 0].numpy()), np.sort(expected[:, 0]))
    assert not torch.equal(rows[:48], rows[48:])
    whole_epochs = {"train_batch_size_tokens": 12, "n_batches_in_buffer": 1}
    classes = take(store(folder, token_kind="cls", **whole_epochs), 1)
    assert classes[:, 0].sort().values.tolist() == [1000 * n + 100 for n in range(12)]
    assert not (tmp_path / "sprung").exists()
    pickle.loads(base64.b64decode(json.loads((folder / "metadata.json").read_text())["data"]))
    assert (tmp_path / "sprung").exists(), "the trap itself is broken"


def test_a_store_goes_on_where_it_was_and_follows_its_seed(tmp_path):
    folder = write_folder(tmp_path)
    whole = take(store(folder), 20)
    assert torch.equal(whole, take(store(folder), 20))
    assert not torch.equal(whole, take(store(folder, seed=1), 20))
    for stop in (1, 3, 10):
        first = store(folder)
        take(first, stop)
        second = store(folder)
        next(second)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert torch.equal(take(second, 20 - stop), whole[8 * stop :])
    # a batch of eight rows draws on several of the twelve images
    n_images = [len(set((batch[:, 0] // 1000).tolist())) for batch in whole.split(8)]
    assert min(n_images) >= 3


def test_older_spellings_are_read(tmp_path):
    old = {
        "protocol": "2.0",
        "content_tokens_per_example": "left out",
        "n_examples": "left out",
        "patches_per_ex": N_PATCHES,
        "n_ex": 12,
    }
    entries = [{"name": f"acts{n:06}.bin", "n_ex": size} for n, size in enumerate(EXAMPLES)]
    shards = SaevShards(write_folder(tmp_path, metadata=old, shards=entries))
    np.testing.assert_array_equal(shards.example(11, 4), all_numbers()[11, 0])


def test_a_renamed_folder_is_read_with_a_warning(tmp_path):
    folder = write_folder(tmp_path, name="renamed")
    with pytest.warns(UserWarning, match="SHA-256 of its metadata"):
        SaevShards(folder)


@pytest.mark.parametrize(
    ("metadata", "shards", "message"),
    [
        ({"protocol": "3.0"}, None, "protocol '3.0'; want one of 2.0, 2.1"),
        ({"protocol": "left out"}, None, "protocol = None; want a str"),
        ({"dtype": "float16"}, None, "dtype 'float16'; want 'float32'"),
        ({"layers": [4, 4]}, None, "want each once"),
        ({"layers": ["4"]}, None, "want numbers of blocks"),
        ({"d_model": 0}, None, "d_model = 0; want 1 or more"),
        ({"cls_token": "yes"}, None, "cls_token = 'yes'; want a bool"),
        ({"n_examples": 13}, None, "12 examples; want 13"),
        ({"d_model": 4}, None, "has 600 bytes; want 800 or more"),
        (None, [{"name": "../acts000000.bin", "n_examples": 12}], "want a name like acts000000"),
        (None, [{"name": "acts000000.bin", "n_examples": 12}], "has 600 bytes; want 1,440"),
        (None, ["acts000000.bin"], "want name and n_examples"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, metadata, shards, message):
    folder = write_folder(tmp_path, metadata=metadata, shards=shards)
    with pytest.raises(ValueError, match=message):
        SaevShards(folder)


def test_missing_files_layers_and_tokens_are_refused(tmp_path):
    folder = write_folder(tmp_path)
    with pytest.raises(ValueError, match=r"hook_name is 'blocks.5.hook_resid_post'; want"):
        store(folder, hook_name="blocks.5.hook_resid_post")
    with pytest.raises(ValueError, match=r"hook_name is 'blocks.4.hook_mlp_out'"):
        store(folder, hook_name="blocks.4.hook_mlp_out")
    with pytest.raises(ValueError, match="token_kind is 'registers'; want one that"):
        store(folder, token_kind="registers")
    (folder / "acts000001.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"acts000001.bin is missing"):
        SaevShards(folder)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        SaevShards(tmp_path / "nowhere")


def test_ranks_share_each_batch(tmp_path):
    folder = write_folder(tmp_path)
    whole, shares = store(folder), [store(folder) for _ in range(3)]
    for rank, share in enumerate(shares):
        share.take_share(rank, 3, gather=lambda text: [text])
    for _ in range(7):
        batch, parts = next(whole), [next(share) for share in shares]
        assert [len(part) for part in parts] == [3, 3, 2]
        assert [share.global_batch_rows for share in shares] == [8, 8, 8]
        for rank, part in enumerate(parts):
            assert torch.equal(part, batch[rank::3])


def test_training_on_them_leaves_the_models_name_in_the_sae(tmp_path):
    folder = write_folder(tmp_path)
    saes = tmp_path / "run"
    command = ("train", "--images", f"saev:{folder}", "--hook-name", HOOK, "--d-sae", 8)
    run = ("--training-tokens", 64, "--set", "train_batch_size_tokens=8", "--output-path", saes)
    assert vit_sae(*command, *run) == 0
    metadata = SAE.load_from_disk(saes / "sae").cfg.metadata
    assert metadata.model_name == "ViT-B-16"
    assert metadata.model_from_pretrained_kwargs == {"pretrained": "openai"}
    assert (metadata.hook_name, metadata.token_kind) == (HOOK, "all")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "choose one with --hook-name"),
        (("--hook-name", HOOK, "--model", "ViT-L-14"), "are of ViT-B-16/openai"),
        (("--hook-name", "blocks.3.hook_resid_post"), "hook_name is 'blocks.3.hook_resid_post'"),
        (("--hook-name", HOOK, "--set", "seqpos_slice=[1]"), "want token_kind"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, capsys, words, message):
    folder = write_folder(tmp_path)
    run = ("--d-sae", 8, "--training-tokens", 8192, "--output-path", tmp_path / "run")
    assert vit_sae("train", "--images", f"saev:{folder}", *words, *run) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_reads_several_layers(tmp_path):
    folder = write_folder(tmp_path)
    (tmp_path / "sweep.yaml").write_text(
        f"""
settings: {{dataset_path: "saev:{folder}", training_tokens: 64, train_batch_size_tokens: 8,
            sae: {{architecture: standard, d_sae: 8}}}}
members:
  - {{name: early, hook_name: blocks.4.hook_resid_post}}
  - {{name: late, hook_name: {HOOK}}}
"""
    )
    sweep = ("train", "--sweep", tmp_path / "sweep.yaml", "--output-path", tmp_path / "out")
    assert vit_sae(*sweep) == 0
    for name, hook in (("early", "blocks.4.hook_resid_post"), ("late", HOOK)):
        (sae,) = (tmp_path / "out").glob(f"**/{name}/sae")
        assert SAE.load_from_disk(sae).cfg.metadata.hook_name == hook
