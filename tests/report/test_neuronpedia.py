"""The files in Neuronpedia's shape: fields, values by hand, and what has no place in them."""

import gzip
import json
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from vit_sae_plugin import analyze
from vit_sae_plugin.report import export_neuronpedia

FEATURE_FIELDS = """
modelId layer index creatorId createdAt maxActApprox hasVector vector vectorLabel
vectorDefaultSteerStrength hookName topkCosSimIndices topkCosSimValues neuron_alignment_indices
neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices correlated_neurons_pearson
correlated_neurons_l1 correlated_features_indices correlated_features_pearson
correlated_features_l1 neg_str neg_values pos_str pos_values frac_nonzero
freq_hist_data_bar_heights freq_hist_data_bar_values logits_hist_data_bar_heights
logits_hist_data_bar_values decoder_weights_dist sourceSetName
""".split()
ACTIVATION_FIELDS = """
id tokens index layer modelId maxValue maxValueTokenIndex minValue values creatorId dataSource
dataIndex dfaValues dfaTargetIndex dfaMaxValue createdAt lossValues logitContributions binMin
binMax binContains qualifyingTokenIndex zIndices zValues
""".split()
WHEN = datetime(2026, 1, 2, tzinfo=UTC)


def rows(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.fixture(scope="module")
def setup():
    model = make_model()
    sae = make_sae(model)
    images = NoisePictures(20)
    atlas = analyze(model, sae, images, n_reference_images=4, progress=False)
    return model, sae, atlas, images


@pytest.fixture(scope="module")
def exported(setup, tmp_path_factory):
    return export_neuronpedia(
        *setup,
        tmp_path_factory.mktemp("exports"),
        model_id="tiny clip",
        creator_id="someone",
        descriptions={3: "blue blocks"},
        created_at=WHEN,
        progress=False,
    )


def test_the_tree(exported):
    assert exported.parts[-2:] == ("tiny-clip", "1-vit-sae")
    names = sorted(path.relative_to(exported).as_posix() for path in exported.rglob("*.*"))
    assert names == [
        "NOT_INCLUDED.md",
        "activations/batch-0.jsonl.gz",
        "explanations/batch-0.jsonl.gz",
        "features/batch-0.jsonl.gz",
        "model.jsonl",
        "release.jsonl",
        "source.jsonl",
        "sourceset.jsonl",
    ]
    tables = {
        name: json.loads((exported / f"{name}.jsonl").read_text())
        for name in ("model", "release", "source", "sourceset")
    }
    assert tables["model"]["id"] == tables["source"]["modelId"] == "tiny-clip"
    assert tables["source"]["id"] == "1-vit-sae"
    assert tables["source"]["setName"] == tables["sourceset"]["name"] == "vit-sae"
    assert tables["sourceset"]["releaseName"] == tables["release"]["name"]
    assert (tables["source"]["num_prompts"], tables["source"]["num_tokens_in_prompt"]) == (20, 17)
    assert json.loads(tables["source"]["notes"])["hook_name"] == "blocks.1.hook_resid_post"


def test_features_by_the_field_list(exported, setup):
    _, sae, atlas, _ = setup
    features = rows(exported / "features" / "batch-0.jsonl.gz")
    alive = [int(i) for i in np.flatnonzero(~atlas.latents["is_dead"])]
    assert [int(row["index"]) for row in features] == alive
    assert 7 not in alive  # it is dead
    for row in features:
        assert set(row) == set(FEATURE_FIELDS)
        latent = int(row["index"])
        stats = atlas.latents.loc[latent]
        assert row["hookName"] == "blocks.1.hook_resid_post"
        assert row["maxActApprox"] == pytest.approx(stats["max_activation"], rel=1e-5)
        assert row["frac_nonzero"] == pytest.approx(stats["token_frequency"], rel=1e-5)
        assert row["vector"] == pytest.approx(sae.W_dec[latent].tolist(), rel=1e-5)
        assert sum(row["freq_hist_data_bar_heights"]) == stats["n_active_tokens"]
        assert len(row["freq_hist_data_bar_heights"]) == len(row["freq_hist_data_bar_values"])
        assert row["topkCosSimIndices"] == [int(i) for i in atlas.similar(latent).index]
        weights = sae.W_dec[latent].detach().abs()
        assert row["neuron_alignment_indices"][0] == int(weights.argmax())
        assert row["neuron_alignment_l1"][0] == pytest.approx(
            float(weights.max() / weights.sum()), rel=1e-4
        )
        assert row["pos_str"] == row["correlated_features_pearson"] == []


def test_activations_are_patch_maps(exported, setup):
    model, sae, atlas, images = setup
    activations = rows(exported / "activations" / "batch-0.jsonl.gz")
    of_latent = [row for row in activations if row["index"] == "3"]
    references = atlas.reference_images(3)
    assert [row["dataIndex"] for row in of_latent] == references["id"].tolist()
    tokens = ["class", *[f"{r},{c}" for r in range(4) for c in range(4)]]
    for row, image in zip(of_latent, references["image"], strict=True):
        assert set(row) == set(ACTIVATION_FIELDS)
        assert row["tokens"] == tokens
        pixels = model.preprocess(images.picture(int(image)))[None]
        with torch.no_grad():
            _, cache = model.run_with_cache(pixels, names_filter="blocks.1.hook_resid_post")
            wanted = sae.encode(cache["blocks.1.hook_resid_post"])[0, :, 3]
        assert row["values"] == pytest.approx(wanted.tolist(), rel=1e-4, abs=1e-5)
        assert row["maxValue"] == max(row["values"])
        assert row["maxValueTokenIndex"] == row["qualifyingTokenIndex"] == int(wanted.argmax())
        assert row["dataSource"] == "noise"
        assert row["binMin"] is row["binContains"] is None
    ids = [row["id"] for row in activations]
    assert len(set(ids)) == len(ids)


def test_descriptions_become_explanations(exported):
    (row,) = rows(exported / "explanations" / "batch-0.jsonl.gz")
    assert (row["index"], row["description"]) == ("3", "blue blocks")
    assert (row["layer"], row["authorId"]) == ("1-vit-sae", "someone")


def test_what_is_missing_is_said(exported):
    text = (exported / "NOT_INCLUDED.md").read_text()
    for word in ("pictures stay here", "Co-activation", "`pos_str` and `neg_str` are empty"):
        assert word in text


def test_the_same_export_is_the_same_bytes(setup, tmp_path):
    folders = [
        export_neuronpedia(*setup, tmp_path / name, latents=[3, 5], created_at=WHEN, progress=False)
        for name in "ab"
    ]
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in folders
    ]
    assert files[0] == files[1]
    with pytest.raises(ValueError, match="there is no latent 99"):
        export_neuronpedia(*setup, tmp_path / "c", latents=[99])
    assert not (tmp_path / "c").exists()
