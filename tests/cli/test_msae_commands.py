"""The Matryoshka SAE from the command line: train it, measure it by MSAE's suite, export it."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from tests.cli.command import vit_sae
from vit_sae_plugin.datasets import ShapeScenes, open_images

N_IMAGES = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Scenes in two class folders, in an order that sorting their names doesn't give."""
    folder = tmp_path_factory.mktemp("photos")
    scenes = ShapeScenes(N_IMAGES, seed=5)
    for index in range(N_IMAGES):
        place = folder / f"class {index % 2}"
        place.mkdir(exist_ok=True)
        scenes.scene(index).image.save(place / f"{index}.png")
    captions = [scenes.scene(index).caption for index in range(N_IMAGES)]
    (folder / "captions.txt").write_text("\n".join(captions))
    (folder / "training.txt").write_text("\n".join(captions[::-1]) + "\n\n")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """The preset for shape scenes, cut short and on other images."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    code = vit_sae(
        *("train", "--preset", "msae-shapes", "--images", photos, "--training-tokens", 800),
        *("--expansion-factor", 1, "--device", "cpu", "--output-path", folder),
        *("--set", "train_batch_size_tokens=20"),
    )
    assert code == 0
    return folder


def test_the_suite_measures_images_and_captions_at_every_k(run, photos, tmp_path, capsys):
    code = vit_sae(
        *("eval", run, "--images", photos, "--suite", "msae", "--probe-images", photos),
        *("--captions", photos / "captions.txt", "--training-captions", photos / "training.txt"),
        *("--output-path", tmp_path, "--batch-size-images", 16, "--device", "cpu"),
    )
    assert code == 0
    printed = capsys.readouterr().out
    assert "progressive_recovery" in printed
    assert "activation_histogram" in printed
    assert len(printed.splitlines()) < 60
    own = pd.read_csv(tmp_path / "embeddings.csv", index_col="modality")
    assert own["n_rows"].to_dict() == {"image": N_IMAGES, "text": N_IMAGES}
    assert own.notna().all(axis=None)
    assert {"fvu", "cosine_similarity", "cknna_latents_raw", "probe_kl"} <= set(own.columns)
    recovery = pd.read_csv(tmp_path / "progressive_recovery.csv", index_col=["modality", "k"])
    assert recovery.index.to_list() == [
        (m, k) for m in ("image", "text") for k in (16, 32, 64, 128)
    ]
    image = recovery.loc["image"]
    assert image["fvu"].is_monotonic_decreasing
    assert image["fvu"].iloc[-1] < 0.5  # it has learnt something in 40 steps
    assert image.loc[128, "fvu"] == pytest.approx(own.loc["image", "fvu"])
    counts = pd.read_csv(tmp_path / "activation_histogram.csv").groupby("modality")["all"].sum()
    assert counts["image"] == pytest.approx(own.loc["image", "l0"] * N_IMAGES)


def test_saved_latents_come_back_in_the_order_of_the_images(run, photos, tmp_path):
    from sae_lens import SAE

    from vit_sae_plugin import HookedViT
    from vit_sae_plugin.activations import embed_images
    from vit_sae_plugin.attached_sae import RowCoder
    from vit_sae_plugin.evaluation import load_latents

    command = ("eval", run / "sae", "--images", photos, "--suite", "msae", "--device", "cpu")
    command = (*command, "--batch-size-images", 7, "--n-workers", 2, "--n-images", 30)
    places = ("--output-path", tmp_path / "e", "--save-latents", tmp_path / "latents")
    assert vit_sae(*command, *places) == 0
    saved = load_latents(tmp_path / "latents")

    source = open_images(photos)
    assert saved.row_ids == [source.record(index).id for index in range(30)]
    rows = embed_images(HookedViT.from_pretrained("shapes-clip"), source, progress=False)
    expected = RowCoder(SAE.load_from_disk(run / "sae")).encode(rows.tensor(slice(30)))
    torch.testing.assert_close(saved.to_dense(), expected, rtol=1e-4, atol=1e-4)
    assert expected.any(dim=1).all()


def test_the_exported_sae_is_a_plain_one_with_equal_outputs(run, tmp_path):
    """tests/saes/test_fresh_process.py opens such folders where the plugin isn't imported."""
    from sae_lens import SAE, StandardSAE, TopKSAE

    from vit_sae_plugin.attached_sae import RowCoder

    assert vit_sae("export", run, tmp_path / "standard") == 0
    assert vit_sae("export", run, tmp_path / "topk", "--architecture", "topk", "--k", 8) == 0
    rows = torch.randn(50, 128, generator=torch.Generator().manual_seed(0))

    # Ours centres and scales its input by the training statistics; the plain ones have that inside.
    ours = RowCoder(SAE.load_from_disk(run / "sae"))
    for name, kind, k in (("standard", StandardSAE, None), ("topk", TopKSAE, 8)):
        plain = SAE.load_from_disk(tmp_path / name)
        assert type(plain) is kind
        latents = ours.encode(rows, k)
        torch.testing.assert_close(plain.encode(rows), latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(plain(rows), ours.decode(latents), rtol=1e-4, atol=1e-4)
    assert (latents > 0).sum(1).max() == 8


def test_what_the_suite_cannot_do_is_said_before_anything_is_written(run, photos, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    command = ("eval", run, "--images", photos, "--output-path", tmp_path / "e")
    captions = ("--captions", photos / "captions.txt")
    for more, message in [
        (("--suite", "msae", "--save-latents", tmp_path / "taken"), "that exists; choose another"),
        (captions, "--captions goes with --suite msae"),
        (("--suite", "msae", *captions), "--training-captions FILE must give"),
    ]:
        assert vit_sae(*command, *more) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "sae.k_list=[8, 4]"], "where 8 comes before 4; want rising numbers"),
        (["--set", "sae.k_list=[8, 64]"], "want at most 32, the SAE's latents"),
        (["--set", "sae.k_list=[4, 32]", "--set", "sae.level_weights=[1]"], "has 1 numbers"),
        (["--set", "sae.d_in=7"], "rows are 6 wide; want 7, the SAE's d_in"),
        ([], "1 of 50 rows hold NaN or infinite values (the first is row 3)"),
    ],
)
def test_bad_input_of_training_is_one_line_and_writes_nothing(tmp_path, capsys, flags, message):
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    rows[3, 1] = np.nan if not flags else 0
    np.save(tmp_path / "rows.npy", rows)
    code = vit_sae(
        *("train", "--embeddings", tmp_path / "rows.npy", "--architecture", "matryoshka_topk"),
        *("--d-sae", 32, "--output-path", tmp_path / "run", "--training-tokens", 100),
        *("--set", "train_batch_size_tokens=50", "--set", "sae.k_start=4", *flags),
    )
    assert code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npy"]


def test_rows_that_are_not_finite_can_be_left_out(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    rows[3, 1] = np.inf
    np.save(tmp_path / "rows.npy", rows)
    with pytest.warns(UserWarning, match="1 of 50 rows"):
        code = vit_sae(
            *("train", "--embeddings", tmp_path / "rows.npy", "--architecture", "matryoshka_topk"),
            *("--d-sae", 32, "--output-path", tmp_path / "run", "--training-tokens", 100),
            *("--set", "train_batch_size_tokens=50", "--set", "sae.k_start=4"),
            *("--set", "non_finite_rows=drop", "--set", "standardize_embeddings=true"),
        )
    assert code == 0
    config = json.loads((tmp_path / "run" / "sae" / "cfg.json").read_text())
    assert config["metadata"]["input_statistics"]["n_rows"] == 49


def test_captions_are_refused_for_an_sae_of_patches(run, photos, tmp_path, capsys):
    config = json.loads((run / "sae" / "cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.2.hook_resid_post"
    sae = tmp_path / "sae"
    sae.mkdir()
    (sae / "cfg.json").write_text(json.dumps(config))
    (sae / "sae_weights.safetensors").write_bytes(
        (run / "sae" / "sae_weights.safetensors").read_bytes()
    )
    captions = ("--captions", photos / "captions.txt")
    assert vit_sae("eval", sae, "--images", photos, "--suite", "msae", *captions) == 2
    assert "this SAE reads blocks.2.hook_resid_post" in capsys.readouterr().err
    assert not (sae / "evaluation").exists()
