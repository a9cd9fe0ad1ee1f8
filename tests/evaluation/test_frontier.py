"""The comparison of SAEs: it runs in parts, scores concepts rightly, and keeps budgets apart."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from sae_lens import StandardSAE, StandardSAEConfig

from benchmarks import frontier
from vit_sae_plugin.activations import EmbeddingRows
from vit_sae_plugin.datasets import ShapeScenes


def run(monkeypatch, folder, *families, seeds=(0,), n_held_out=60, draws=False):
    settings = ["--n-training-images", 240, "--n-held-out-images", n_held_out, "--epochs", 6]
    settings += ["--expansion-factor", 1, "--output-path", folder, "--families", *families]
    settings += ["--seeds", *seeds]
    monkeypatch.setattr(frontier, "N_VALIDATION", 20)
    monkeypatch.setattr(frontier, "KS", (2, 8))
    monkeypatch.setattr(frontier, "BATCH_SIZE", 128)
    top_k = dataclasses.replace(frontier.FAMILIES["TopK"], values=(2, 8))
    monkeypatch.setitem(frontier.FAMILIES, "TopK", top_k)
    monkeypatch.setattr("sys.argv", ["frontier.py", *map(str, settings)])
    with monkeypatch.context() as patched:
        for plot in () if draws else ("plot_frontier", "plot_progressive_recovery"):
            patched.setattr(frontier, plot, lambda *_, **__: Figure((1, 1)))  # seconds, otherwise
        frontier.main()


def test_parts_are_joined_and_never_made_twice(monkeypatch, tmp_path, capsys):
    run(monkeypatch, tmp_path, "TopK")
    members = ["TopK k=2", "TopK k=8"]
    saes = tmp_path / "saes"
    trained = {path: path.stat().st_mtime_ns for path in (saes / "seed-0").iterdir()}
    assert sorted(path.name for path in trained) == sorted(members)
    run(monkeypatch, tmp_path, "MSAE RW", seeds=(0, 1), draws=True)
    table = pd.read_csv(tmp_path / "frontier.csv", index_col=["sae", "seed"])
    nested = [f"MSAE RW at k={k}" for k in frontier.KS]
    expected = [(name, 0) for name in members]
    expected += [(name, seed) for seed in (0, 1) for name in ("MSAE RW", *nested)]
    assert table.index.to_list() == expected
    assert table.loc[("TopK k=8", 0), "l0"] == table.loc[("MSAE RW at k=8", 1), "l0"] == 8
    assert table["auroc_color"].between(0, 1).all()
    assert {"cknna_latents_raw", "cknna_latents_unit"} <= set(table.columns)
    means = pd.read_csv(tmp_path / "frontier_means.csv", index_col="sae")
    fvu = table.loc["MSAE RW", "fvu"]
    assert means.loc["MSAE RW", "n_seeds"] == 2
    assert means.loc["MSAE RW", "fvu_mean"] == pytest.approx(fvu.mean())
    assert means.loc["MSAE RW", "fvu_max"] == fvu.max() > fvu.min()
    for path, changed in trained.items():
        assert path.stat().st_mtime_ns == changed
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    assert (tmp_path / "progressive_recovery.png").stat().st_size > 10_000
    assert "MSAE RW at k=8" in capsys.readouterr().out
    assert "| MSAE RW at k=8 | 2 | 8.0 |" in (tmp_path / "frontier.md").read_text()
    # an evaluation that was killed halfway is made again
    unfinished = frontier.evaluation_folder(tmp_path, "TopK k=2", 0) / "evaluation.json"
    unfinished.unlink()
    run(monkeypatch, tmp_path, "TopK")
    assert unfinished.exists()
    with pytest.raises(SystemExit, match="want another folder"):
        run(monkeypatch, tmp_path, "TopK", n_held_out=50)


def test_differences_are_between_saes_of_one_k_and_one_seed():
    index = pd.MultiIndex.from_product(
        [["TopK k=2", "TopK k=32", "MSAE UW at k=2"], [0, 1]], names=["sae", "seed"]
    )
    table = pd.DataFrame({"fvu": [1.0, 4, 0, 0, 3, 8]}, index=index)
    table[frontier.ALIGNMENT] = 0.5
    differences = frontier.paired_differences(table)
    assert differences.index.to_list() == [(2, "TopK k=2")]
    assert differences.loc[(2, "TopK k=2"), "fvu"].to_dict() == {"mean": 3, "min": 2, "max": 4}


def test_a_concept_scores_what_its_best_latent_scores_on_the_other_half():
    sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=4))
    sae.W_enc.data = sae.W_dec.data = torch.eye(4)
    generator = np.random.default_rng(0)
    shown = generator.random(400) < 0.3
    rows = generator.random((400, 4)).astype(np.float32)
    rows[:, 2] += 2 * shown  # one latent tells the concept, the others are noise
    concepts = {"one": [torch.from_numpy(shown)]}
    assert frontier.concept_scores(sae, EmbeddingRows(rows), concepts) == {"auroc_one": 1.0}
    # Of the largest latent alone it is the same; of noise it is chance.
    assert frontier.concept_scores(sae, EmbeddingRows(rows), concepts, k=1)["auroc_one"] == 1.0
    rows[:, 2] -= 2 * shown
    chance = frontier.concept_scores(sae, EmbeddingRows(rows), concepts)["auroc_one"]
    assert chance == pytest.approx(0.5, abs=0.12)


def test_the_concepts_of_scenes():
    images = ShapeScenes(50, seed=1)
    concepts = frontier.scene_concepts(images)
    objects = [images.scene(index).objects for index in range(50)]
    n_shapes = sum(len({thing.shape for thing in things}) for things in objects)
    assert sum(int(flags.sum()) for flags in concepts["shape"]) == n_shapes
    n_pairs = sum(len({(thing.color, thing.shape) for thing in things}) for things in objects)
    assert sum(int(flags.sum()) for flags in concepts["colored_shape"]) == n_pairs
    assert len(concepts["color"]) == 8
