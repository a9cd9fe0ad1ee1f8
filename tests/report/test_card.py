"""An SAE's card, from figures worked by hand."""

import json
import math

import pandas as pd
import pytest
from sae_lens import TopKSAE, TopKSAEConfig

from vit_sae_plugin.evaluation import EvaluationReport
from vit_sae_plugin.fingerprints import find_file_damage, read_manifest, write_manifest
from vit_sae_plugin.report.card import CardFigures, card_text, write_card


def make_sae(**metadata):
    sae = TopKSAE(TopKSAEConfig(d_in=4, d_sae=16, k=3))
    for name, value in metadata.items():
        sae.cfg.metadata[name] = value
    return sae


def report(explained, accuracy, zeros=0.2):
    reconstruction = pd.DataFrame(
        {"explained_variance": [explained], "l0": [3.0], "mse": [math.nan]}, index=["all"]
    )
    splicing = pd.DataFrame(
        {
            "zero_shot_accuracy": [0.6, accuracy, 0.1],
            "contrastive_loss": [math.nan] * 3,
            "output_cosine": [1.0, 0.9, zeros],
        },
        index=["original", "spliced", "zeros"],
    )
    settings = {"n_images": 1200, "images": "photos"}
    return EvaluationReport(
        {"reconstruction": reconstruction, "splicing": splicing}, settings, ["a note"]
    )


def figures(**more):
    return CardFigures(
        measured=report(0.75, 0.58, **more),
        control=report(0.25, 0.31, **more),
        command="vit-sae card FOLDER --images photos",
        control_k=3,
        picture_rule="Chosen by a rule.",
    )


def test_figures_stand_beside_the_control(tmp_path):
    text = card_text(make_sae(), tmp_path, figures())
    assert "On 1,200 images of photos" in text
    assert "vit-sae card FOLDER --images photos" in text
    assert "| explained variance | 0.75 | 0.25 |" in text
    assert "in place (untouched: 0.6) | 0.58 | 0.31 |" in text
    assert "| mean squared error | – | – |" in text
    assert "contrastive" not in text  # it could not be measured
    assert "*a note*" in text
    assert "![Latents and the images they fire on](card.png)" in text


def test_tokens_that_no_longer_reach_the_output_are_not_compared(tmp_path):
    text = card_text(make_sae(), tmp_path, figures(zeros=1.0))
    assert "leaves the model's output as it is" in text
    assert "zero-shot" not in text


def test_front_matter_and_source(tmp_path):
    sae = make_sae(
        model_name="hf:openai/clip-vit-base-patch16",
        hook_name="blocks.10.hook_resid_post",
        token_kind="patches",
        licence="MIT",
        source="saev:a/b/sae.pt",
        source_settings={"lr": 0.001, "data": "/home/me/secret/imagenet", "note": "a|b\nc"},
        input_statistics={"modality": "image", "scale": 1.5, "mean": [0.0] * 4, "n_rows": 0},
    )
    text = card_text(sae, tmp_path)
    front = text.split("---")[1]
    assert 'license: "mit"' in front
    assert "base_model: openai/clip-vit-base-patch16" in front
    assert "`topk`, 4 → 16 latents, 3 of them kept for each row" in text
    assert "rows centred by a mean and multiplied by 1.5" in text
    assert "| converted from | saev:a/b/sae.pt |" in text
    assert "| data | imagenet |" in text  # no folder of the machine it was trained on
    assert "secret" not in text
    assert r"| note | a\|b c |" in text
    assert "Nothing yet." in text


def test_a_run_s_settings_and_an_older_card(tmp_path):
    settings = {"lr": 0.0004, "training_tokens": 1000, "sae": {"k": 3, "device": "cuda"}}
    (tmp_path / "runner_cfg.json").write_text(json.dumps(settings))
    (tmp_path / "README.md").write_text("older")
    path = write_card(tmp_path, make_sae())
    text = path.read_text(encoding="utf-8")
    assert "| lr | 0.0004 |" in text
    assert "| sae.k | 3 |" in text
    assert "cuda" not in text
    assert "older" not in text
    assert "not stated" in text  # the model


def test_a_card_is_renewed_in_the_manifest_and_nothing_else_is(tmp_path):
    (tmp_path / "README.md").write_text("older")
    (tmp_path / "cfg.json").write_text("{}")
    write_manifest(tmp_path)
    write_card(tmp_path, make_sae())
    assert find_file_damage(tmp_path, read_manifest(tmp_path)) is None
    (tmp_path / "cfg.json").write_text("[]")
    write_card(tmp_path, make_sae(model_name="ViT-B-16"))
    assert find_file_damage(tmp_path, read_manifest(tmp_path)) == (
        "the contents of cfg.json have changed"
    )


@pytest.mark.parametrize("name", ["hf-hub:laion/CLIP", "ViT-B-16"])
def test_base_model_only_where_the_hub_has_it(name, tmp_path):
    front = card_text(make_sae(model_name=name), tmp_path).split("---")[1]
    assert ("base_model: laion/CLIP" in front) == name.startswith("hf-hub:")
