"""``vit-sae eval --suite masking``: from a run to tables and a picture, ranked in two ways."""

import pandas as pd
import pytest

from tests.cli.command import vit_sae

TRAIN, TEST = "shapes:train?n_images=400&n_objects=1", "shapes:test?n_images=20&n_objects=1"


@pytest.fixture(scope="module")
def sae(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    code = vit_sae(
        *("train", "--preset", "patchsae-shapes", "--images", TRAIN, "--training-tokens", 8000),
        *("--d-sae", 64, "--device", "cpu", "--output-path", run),
        *("--set", "train_batch_size_tokens=400", "--set", "lr_warm_up_steps=5"),
        *("--set", "lr_decay_steps=5"),
    )
    assert code == 0
    return run / "sae"


def test_masking_from_images_and_from_an_atlas(sae, tmp_path, capsys):
    study = ("eval", sae, "--suite", "masking", "--images", TEST, "--ks", "1,64")
    assert vit_sae(*study, "--ranking-images", TRAIN, "--output-path", tmp_path / "m") == 0
    assert "masking_by_class" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "m" / "masking.csv")
    assert table["accuracy"].between(0, 1).all()
    assert set(table["k"]) >= {1, 64}
    # with every latent kept it is the reconstruction, whoever ranked them
    kept = table[(table["mask"] == "on") & (table["k"] == 64)]
    assert kept.groupby("error_term")["accuracy"].nunique().max() == 1
    assert (table["low"] <= table["accuracy"]).all()
    assert (tmp_path / "m" / "masking.png").stat().st_size > 10_000
    assert not list((tmp_path / "m").glob("unfinished*"))

    atlas = tmp_path / "atlas"
    assert vit_sae("analyze", sae, "--images", TRAIN, "--output-path", atlas) == 0
    assert vit_sae(*study, "--atlas", atlas, "--output-path", tmp_path / "a") == 0
    of_atlas = pd.read_csv(tmp_path / "a" / "masking.csv")
    kept_too = of_atlas[(of_atlas["mask"] == "on") & (of_atlas["k"] == 64)]
    assert kept_too["accuracy"].to_list() == kept["accuracy"].to_list()


def test_ranking_on_the_images_that_are_scored_must_be_asked_for(sae, tmp_path, capsys):
    study = ("eval", sae, "--suite", "masking", "--images", TRAIN, "--ranking-images", TRAIN)
    assert vit_sae(*study, "--output-path", tmp_path / "m") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "ranked and scored on the same images" in error
    assert vit_sae(*study, "--ks", "few", "--output-path", tmp_path / "m") == 2
    assert "--ks is 'few'; want numbers" in capsys.readouterr().err
