"""``vit-sae analyze``: its options, what it says, and what it refuses before any work is done."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from tests.cli.command import vit_sae
from vit_sae_plugin import LatentAtlas, PatchSAE, PatchSAEConfig, analysis
from vit_sae_plugin.activations import ActivationSource, embed_images
from vit_sae_plugin.analysis import LatentName
from vit_sae_plugin.analysis.atlas.latent_names import write_names
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.hooked_vit import HookedViT

RULE = {"name": "kth_largest", "k": 2}


@pytest.fixture(scope="module")
def sae(tmp_path_factory):
    """A PatchSAE of random weights on the packaged model, with a rule of its own."""
    model = HookedViT.from_pretrained("shapes-clip")
    torch.manual_seed(0)
    sae = PatchSAE(PatchSAEConfig(d_in=model.cfg.d_model, d_sae=48, aggregation=RULE))
    sae.b_enc.data = -torch.rand(48) * 2
    source = ActivationSource.from_model(model, "blocks.2.hook_resid_post")
    for key, value in source.to_metadata().items():
        sae.cfg.metadata[key] = value
    folder = tmp_path_factory.mktemp("saes") / "sae"
    sae.save_model(folder)
    return folder


@pytest.fixture
def calls(monkeypatch):
    """What ``analyze`` was called with."""
    seen = []
    real = analysis.analyze

    def recorded(*args, **kwargs):
        seen.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(analysis, "analyze", recorded)
    return seen


def test_every_option_arrives(sae, photos, tmp_path, calls, capsys):
    code = vit_sae(
        *("analyze", sae, "--images", photos, "--output-path", tmp_path / "atlas"),
        *("--aggregations", "max, mean", "--n-reference-images", 4, "--threshold", 0.4),
        *("--batch-size-images", 5, "--n-workers", 1, "--device", "cpu"),
    )
    assert code == 0
    wanted = {
        "aggregations": ["max", "mean"],
        "n_reference_images": 4,
        "threshold": 0.4,
        "batch_size_images": 5,
        "n_workers": 1,
        "overwrite": False,
    }
    assert wanted.items() <= calls[0].items()
    atlas = LatentAtlas.load(tmp_path / "atlas")
    assert list(atlas.references) == ["max", "mean"]
    assert atlas.references["max"].image.shape == (48, 4)
    assert (atlas.info.threshold, atlas.info.n_images) == (0.4, 12)
    assert atlas.skipped_images["id"].tolist() == ["class 0/000broken.jpg"]
    said = capsys.readouterr()
    assert f"LatentAtlas.load({str(tmp_path / 'atlas')!r})" in said.out
    assert "13/13" in said.err


def test_data_sets_have_atlases_of_their_own(sae, photos, capsys):
    assert vit_sae("analyze", sae, "--images", photos) == 0
    assert vit_sae("analyze", sae, "--images", photos / "class 1") == 0
    folders = {folder.name[:-8]: folder for folder in sae.glob("atlas-*")}
    assert set(folders) == {f"atlas-{photos.name}-", "atlas-class-1-"}
    whole = LatentAtlas.load(folders[f"atlas-{photos.name}-"])
    assert whole.info.data_sha256.startswith(whole.folder.name[-8:])
    assert list(whole.references) == ["kth_largest", "mean", "count", "max"]
    assert whole.info.aggregations["kth_largest"].items() >= RULE.items()
    capsys.readouterr()
    assert vit_sae("analyze", sae, "--images", photos) == 0
    assert "opening the finished atlas" in capsys.readouterr().err
    assert vit_sae("analyze", sae, "--images", photos, "--threshold", 0.3) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "threshold: None there, 0.3 now" in said
    assert "--overwrite" in said
    assert vit_sae("analyze", sae, "--images", photos, "--threshold", 0.3, "--overwrite") == 0
    assert LatentAtlas.load(whole.folder).info.threshold == 0.3


def test_a_folder_of_images_may_have_a_name_of_250_bytes(sae, photos, capsys):
    long = photos.with_name("写" * 83 + "x")  # 250 bytes
    photos.rename(long)
    try:
        assert vit_sae("analyze", sae, "--images", long) == 0, capsys.readouterr().err
    finally:
        long.rename(photos)
    (folder,) = sae.glob("atlas-写*")
    assert LatentAtlas.load(folder).info.n_images == 12


def test_the_report_shows_the_chosen_latents_and_images(sae, photos, tmp_path, monkeypatch):
    from vit_sae_plugin import report

    told = []
    real = report.write_report
    monkeypatch.setattr(
        report, "write_report", lambda *args, **kw: told.append(kw) or real(*args, **kw)
    )
    start = ("analyze", sae, "--images", photos, "--output-path", tmp_path / "atlas")
    assert vit_sae(*start, "--report", tmp_path / "a", "--explain", "3,8", "--n-latents", 5) == 0
    assert told.pop() == {"explain": [3, 8], "n_latents": 5}
    assert len(list((tmp_path / "a" / "data" / "explain").iterdir())) == 2
    names = tmp_path / "names.json"
    atlas = LatentAtlas.load(tmp_path / "atlas")
    write_names(names, {7: LatentName("red rings")}, atlas.info.sae_sha256)
    options = ("--n-explained", 1, "--n-explained-references", 2, "--names", names)
    assert vit_sae(*start, "--report", tmp_path / "b", *options) == 0
    assert told.pop() == {"n_explained": 1, "n_explained_references": 2}
    assert len(list((tmp_path / "b" / "data" / "explain").iterdir())) == 3
    assert "red rings" in (tmp_path / "b" / "data" / "atlas.js").read_text()
    assert LatentAtlas.load(tmp_path / "atlas").names == {7: LatentName("red rings")}
    assert (tmp_path / "b" / "index.html").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:99"], "device 'cuda:99' can't be used here"),
        (["--device", "foo"], "device 'foo' can't be used here"),
        (["--aggregations", "mean,maxx"], "did you mean 'max'"),
        (["--aggregations", ","], "aggregations is empty"),
        (["--names", "none.json"], "--names none.json: there is no such file"),
        (["--n-reference-images", "0"], "n_reference_images is 0; want 1 or more"),
        (["--threshold", "-1"], "threshold is -1.0; want 0 or more"),
        (["--batch-size-images", "0"], "batch_size_images"),
        (["--pretrained", "openai"], "--pretrained goes with --model"),
        (["--explain", "3"], "--explain goes with --report FOLDER"),
        (["--n-explained", "0"], "--n-explained goes with --report FOLDER"),
        (["--report", "r", "--explain", "3,x"], "--explain '3,x': want indices of images"),
        (
            ["--report", "r", "--explain", "3", "--n-explained", "2"],
            "both given; want one",
        ),
        (["--report", "r", "--explain", "99"], "there is no image 99 to explain"),
        (["--report", "r", "--n-explained", "-1"], "n_explained is -1; want 0"),
        (["--report", "r", "--n-latents", "0"], "n_latents is 0; want 1 or more"),
        (["--report", __file__], "is a file"),
    ],
)
def test_wrong_options_are_refused_before_the_images_are_looked_at(
    options, message, sae, photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert vit_sae("analyze", sae, "--images", photos, "--output-path", "atlas", *options) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("vit-sae analyze: error: ")
    assert message in said[0]
    assert not list(tmp_path.iterdir())


def test_images_that_are_none_are_bad_input(sae, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no picture")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no picture")
    for name, message in (
        ("empty", "holds 0 images"),
        ("text", "holds 0 images"),
        ("broken", "none of the 1 images tried in broken can be used"),
    ):
        out = ("--output-path", tmp_path / "atlas")
        assert vit_sae("analyze", sae, "--images", tmp_path / name, *out) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("vit-sae analyze: error: ")
        assert message.casefold() in said.casefold()


def test_damaged_weights_are_bad_input(sae, tmp_path, capsys):
    for path in sae.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes()[:1000])
    assert vit_sae("analyze", tmp_path, "--images", "shapes") == 2
    assert "can't be read" in capsys.readouterr().err


def test_help_names_every_default(capsys):
    with pytest.raises(SystemExit):
        vit_sae("analyze", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--batch-size-images N images that go", "--n-workers N processes that decode"):
        assert option in text
    for default in ("default: 64", "default: 10", "default: 1.05 times", "default: the SAE's own"):
        assert default in text
    assert "goes on where it was" in text
    assert text.count("vit-sae analyze runs/photos/sae") == 4


def test_embeddings_have_an_atlas_and_a_report(photos, tmp_path, capsys):
    """After ``train --embeddings``: no model, pictures by the rows' ids."""
    model = HookedViT.from_pretrained("shapes-clip")
    rows = embed_images(model, open_images(photos), progress=False)
    rows.save(tmp_path / "rows.npy")
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=rows.d_in, d_sae=20))
    sae.save_model(tmp_path / "sae")
    told = ("analyze", tmp_path / "sae", "--embeddings", tmp_path / "rows.npy")
    assert vit_sae(*told, "--images", photos) == 0
    assert "over 12 images" in capsys.readouterr().out
    # the report's pictures go through the model, which the metadata then must name
    for key, value in ActivationSource.from_model(model, "hook_image_embed").to_metadata().items():
        sae.cfg.metadata[key] = value
    sae.save_model(tmp_path / "named")
    report = ("analyze", tmp_path / "named", *told[2:], "--images", photos)
    assert vit_sae(*report, "--report", tmp_path / "report") == 0
    assert len(list((tmp_path / "report/images").glob("*.png"))) > 3
    assert vit_sae(*told, "--output-path", tmp_path / "atlas") == 0
    assert LatentAtlas.load(tmp_path / "atlas").n_classes == 0
    for options, message in [
        (("--report", tmp_path / "r"), "--report needs pictures"),
        (("--model", "shapes-clip"), "--model doesn't go with --embeddings"),
        (("--n-workers", 2), "--n-workers doesn't go with --embeddings"),
    ]:
        assert vit_sae(*told, *options) == 2
        assert message in capsys.readouterr().err
    assert vit_sae("analyze", tmp_path / "sae") == 2
    assert "want --images SOURCE or --embeddings FILE" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/images.parquet").write_text("precious")
    assert vit_sae(*told, "--output-path", tmp_path / "mine") == 2
    assert "holds files that are no atlas, such as images.parquet" in capsys.readouterr().err
    assert (tmp_path / "mine/images.parquet").read_text() == "precious"
