"""What follows ``train --embeddings``: measures on files of rows, and SAEs side by side."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from tests.cli.command import vit_sae
from vit_sae_plugin.attached_sae import RowCoder
from vit_sae_plugin.evaluation import EvaluationReport, evaluate_embeddings, load_latents
from vit_sae_plugin.saved_sae import load_saved_sae


@pytest.fixture(scope="module")
def rows():
    """Rows with a mean far from zero, so that centring is noticed."""
    return np.random.default_rng(0).normal(5, 2, size=(300, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def files(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    np.save(folder / "training.npy", rows[:200])
    np.save(folder / "held_out.npy", rows[200:])
    return folder


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """A Matryoshka SAE and two TopK SAEs, trained on the file for a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    contenders = {
        "msae": ("matryoshka_topk", ["sae.k_start=2", "standardize_embeddings=true"]),
        "k2": ("topk", ["sae.k=2"]),
        "k4": ("topk", ["sae.k=4"]),
    }
    for name, (architecture, settings) in contenders.items():
        code = vit_sae(
            *("train", "--embeddings", files / "training.npy", "--architecture", architecture),
            *("--d-sae", 32, "--training-tokens", 2000, "--output-path", folder / name),
            *("--set", "train_batch_size_tokens=50", "--lr", 0.01, "--device", "cpu"),
            *[part for setting in settings for part in ("--set", setting)],
        )
        assert code == 0
    return folder


def test_a_run_on_a_file_is_measured_on_a_file(runs, files, rows, tmp_path, capsys):
    held_out = files / "held_out.npy"
    places = ("--output-path", tmp_path / "e", "--save-latents", tmp_path / "latents")
    assert vit_sae("eval", runs / "msae", "--embeddings", held_out, *places) == 0
    report = EvaluationReport.load(tmp_path / "e")
    sae, held_out_rows = load_saved_sae(runs / "msae"), torch.from_numpy(rows[200:])
    own = report.embeddings.loc["image"]
    assert own["n_rows"] == 100
    coder = RowCoder(sae)
    with torch.no_grad():
        latents = coder.encode(held_out_rows)
        missed = (held_out_rows - coder.decode(latents)).square().sum()
    spread = (held_out_rows - held_out_rows.mean(0)).square().sum()
    assert own["fvu"] == pytest.approx((missed / spread).item(), rel=1e-4)
    assert own["l0"] == (latents != 0).sum(1).double().mean().item()
    assert report.settings["embeddings"].endswith("held_out.npy")
    torch.testing.assert_close(load_latents(tmp_path / "latents").to_dense(), latents)
    printed = capsys.readouterr().out
    assert "cknna_latents_unit" in printed
    assert len(printed.splitlines()) < 60


def test_frontier_sets_saes_side_by_side(runs, files, rows, tmp_path, capsys):
    place, held_out = tmp_path / "frontier", files / "held_out.npy"
    names = ["TopK k=2", "TopK k=4", "<MSAE>"]
    command = ("frontier", runs / "k2", runs / "k4" / "sae", runs / "msae")
    command = (*command, "--embeddings", held_out, "--names", ",".join(names))
    assert vit_sae(*command, "--output-path", place) == 0
    assert str(place / "index.html") in capsys.readouterr().out
    table = pd.read_csv(place / "frontier.csv", index_col="sae")
    assert table.index.to_list() == names
    assert table["l0"].iloc[:2].to_list() == [2, 4]
    expected = evaluate_embeddings(load_saved_sae(runs / "k4"), torch.from_numpy(rows[200:]))
    assert table.loc["TopK k=4", "fvu"] == pytest.approx(expected.embeddings["fvu"].item())
    recovery = pd.read_csv(place / "progressive_recovery.csv", index_col=["sae", "k"])
    assert recovery.loc["<MSAE>"].index.to_list() == [16, 32]
    page = (place / "index.html").read_text()
    assert "&lt;MSAE&gt;" in page
    assert "<MSAE>" not in page
    for name in ("frontier.png", "progressive_recovery.png"):
        assert f'src="{name}"' in page
        assert (place / name).stat().st_size > 10_000
    # an earlier one is replaced, anything else never
    assert vit_sae(*command[:2], "--embeddings", held_out, "--output-path", place) == 0
    assert pd.read_csv(place / "frontier.csv")["sae"].to_list() == ["k2"]
    (place / "notes.txt").write_text("mine")
    assert vit_sae(*command, "--output-path", place) == 2
    assert (place / "notes.txt").read_text() == "mine"


def test_frontier_of_images_reads_each_saes_own_hook(tmp_path, capsys):
    saes = []
    for hook in ("hook_image_embed", "blocks.1.hook_resid_post"):
        saes.append(tmp_path / hook)
        code = vit_sae(
            *("train", "--preset", "msae-shapes", "--images", "shapes:train?n_images=60"),
            *("--hook-name", hook, "--training-tokens", 60, "--expansion-factor", 1),
            *("--set", "train_batch_size_tokens=20", "--set", "standardize_embeddings=false"),
            *("--output-path", saes[-1], "--device", "cpu"),
        )
        assert code == 0
    images = ("--images", "shapes:test", "--n-images", 10, "--output-path", tmp_path / "f")
    assert vit_sae("frontier", *saes, *images) == 0
    table = pd.read_csv(tmp_path / "f" / "frontier.csv", index_col="sae")
    assert table["n_rows"].to_dict() == {"hook_image_embed": 10, "blocks.1.hook_resid_post": 650}
    assert "compare with care" in capsys.readouterr().err
    assert "compare with care" in (tmp_path / "f" / "index.html").read_text()


def test_what_does_not_go_together_is_one_line(runs, files, tmp_path, capsys):
    sae, held_out = runs / "k2", files / "held_out.npy"
    wide = tmp_path / "wide.safetensors"
    save_file({"embeddings": torch.zeros(9, 13)}, wide)
    hole = np.ones((9, 12), dtype=np.float32)
    hole[2, 2] = np.nan
    np.save(tmp_path / "hole.npy", hole)
    for command, message in [
        (("eval", sae), "want --images SOURCE or --embeddings FILE"),
        (("eval", sae, "--embeddings", held_out, "--images", "shapes"), "--images doesn't go with"),
        (("eval", sae, "--embeddings", held_out, "--n-images", 3), "--n-images doesn't go with"),
        (("eval", sae, "--embeddings", held_out, "--suite", "splice"), "splice needs a model"),
        (("eval", sae, "--embeddings", held_out, "--captions", wide), "--captions doesn't go with"),
        (("eval", sae, "--images", "shapes", "--ks", "1"), "--ks goes with --suite masking"),
        (("eval", sae, "--images", "shapes", "--suite", "masking"), "one of --ranking-images"),
        (("eval", sae, "--embeddings", wide), "13"),
        (("eval", sae, "--embeddings", tmp_path / "hole.npy"), "1 of 9 rows hold NaN"),
        (("frontier", sae), "want either --images SOURCE or --embeddings FILE"),
        (("frontier", sae, sae, "--embeddings", held_out), "the same SAE is given twice"),
        (("frontier", sae, "--embeddings", held_out, "--names", "a,b"), "want 1 different ones"),
        (("frontier", sae, "--embeddings", held_out, "--model", "x"), "--model doesn't go with"),
        (("frontier", sae, "--embeddings", held_out, "--output-path", runs), "holds other files"),
    ]:
        assert vit_sae(*command) == 2, command
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error, (command, error)
