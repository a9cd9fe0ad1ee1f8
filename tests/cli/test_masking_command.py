"""``vit-sae eval --suite masking``: from a run to tables and a picture, ranked in two ways."""

import pandas as pd
import pytest
from sae_lens import SAE

from tests.cli.command import vit_sae

TRAIN = "shapes:train?n_images=600&n_objects=1&classes=base&shots=2"  # of 32 classes
TEST = "shapes:test?n_images=24&n_objects=1&classes=base"
PROMPTS = ("--templates", "shapes")


@pytest.fixture(scope="module")
def sae(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    code = vit_sae(
        *("train", "--preset", "patchsae-shapes", "--images", TRAIN, "--training-tokens", 4000),
        *("--d-sae", 64, "--device", "cpu", "--output-path", run),
        *("--set", "train_batch_size_tokens=200", "--set", "lr_warm_up_steps=5"),
        *("--set", "lr_decay_steps=5"),
    )
    assert code == 0
    return run / "sae"


def test_masking_from_images_and_from_an_atlas(sae, tmp_path, capsys):
    study = ("eval", sae, "--suite", "masking", "--images", TEST, *PROMPTS, "--ks", "1,64")
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

    # a probe of the output instead of class names, and the published average of prompts
    probed = (*study[:-1], "1", "--atlas", atlas, "--output-path")
    assert vit_sae(*probed, tmp_path / "p", "--probe-images", TRAIN) == 0
    assert vit_sae(*probed, tmp_path / "u", "--published-average") == 0
    assert '"renormalize_average": false' in (tmp_path / "u" / "evaluation.json").read_text()

    # the atlas of another SAE ranks latents that are not these
    other = tmp_path / "other"
    changed = SAE.load_from_disk(str(sae))
    changed.b_dec.data += 0.01
    changed.save_model(other)
    elsewhere = ("eval", other, "--suite", "masking", "--images", TEST, "--ks", "1", *PROMPTS)
    assert vit_sae(*elsewhere, "--atlas", atlas, "--output-path", tmp_path / "o") == 2
    assert "the atlas was made from the SAE" in capsys.readouterr().err

    # the report with the study's page, and what made the model's answers
    report = ("analyze", sae, "--images", TRAIN, "--output-path", atlas, "--report")
    shown = ("--masking", tmp_path / "a", "--logit", "predicted", "--explain", "3", *PROMPTS)
    few = ("--n-latents", 5, *shown)
    assert vit_sae(*report, tmp_path / "r", *few) == 0
    assert (tmp_path / "r/data/masking.js").is_file()
    assert '"answer":' in (tmp_path / "r/data/explain/00000.js").read_text()
    assert vit_sae(*report, tmp_path / "n", "--masking", tmp_path) == 2
    assert "holds no evaluation.json" in capsys.readouterr().err


def test_ranking_on_the_images_that_are_scored_must_be_asked_for(sae, tmp_path, capsys):
    study = ("eval", sae, "--suite", "masking", "--images", TRAIN, "--ranking-images", TRAIN)
    assert vit_sae(*study, "--output-path", tmp_path / "m") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "ranked and scored on the same images" in error
    assert vit_sae(*study, "--ks", "few", "--output-path", tmp_path / "m") == 2
    assert "--ks is 'few'; want numbers" in capsys.readouterr().err
