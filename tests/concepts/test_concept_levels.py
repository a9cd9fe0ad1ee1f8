"""Which concepts appear at which k: what the table says follows from the AUROCs."""

import pandas as pd
import pytest

from tests.evaluation.tiny_setup import Pictures, identity_sae, tiny_hooked_vit, tiny_sae
from vit_sae_plugin import MatryoshkaTopKTrainingSAE, MatryoshkaTopKTrainingSAEConfig
from vit_sae_plugin.concepts import concept_levels
from vit_sae_plugin.concepts.concept_levels import _levels_of
from vit_sae_plugin.evaluation import concept_suite


@pytest.fixture(scope="module")
def setup():
    model = tiny_hooked_vit()
    return model, identity_sae(model), Pictures(n_images=40)


def test_levels_of_classes(setup):
    model, sae, pictures = setup
    report = concept_levels(model, sae, pictures, ks=[64, 1, 8], min_auroc=0.6, min_images=3)
    levels, concepts = report.levels.loc["class"], report.concepts
    assert list(levels.index) == [1, 8, 64]
    assert levels["n_latents"].is_monotonic_increasing
    assert (levels["n_concepts"] == 3).all()
    for (_, concept), of_concept in concepts.groupby(level=["kind", "concept"]):
        found = of_concept["auroc"][of_concept["auroc"] >= 0.6].index.get_level_values("k")
        expected = found.min() if len(found) else pd.NA
        assert (of_concept["appears_at"].fillna(-1) == (expected if len(found) else -1)).all()
        assert concept in ("cat", "dog", "owl")
    by_k = concepts["auroc"].groupby("k")
    for k in (1, 8, 64):
        assert levels.loc[k, "auroc"] == pytest.approx(by_k.mean()[k])
        assert levels.loc[k, "n_found"] == (concepts.xs(k, level="k")["auroc"] >= 0.6).sum()
    # with every latent kept it is what a probe of one latent gives
    whole = concept_suite(model, sae, pictures, ks=[1], min_images=3, min_maps=3, n_images=None)
    probed = whole.sparse_probing.loc[("latents", "class", 1), "auroc"]
    assert levels.loc[64, "auroc"] == pytest.approx(probed)


def test_the_levels_of_a_saved_sae_are_those_it_was_trained_for():
    config = MatryoshkaTopKTrainingSAEConfig(d_in=4, d_sae=12, k_list=[2, 6, 12])
    training = MatryoshkaTopKTrainingSAE(config)
    assert _levels_of(training) == [2, 6, 12]
    sae = tiny_sae(tiny_hooked_vit())
    sae.cfg.metadata.training_architecture_details = {"k_list": None, "k_start": 16}
    assert _levels_of(sae) == [16, 32, 48]
    sae.cfg.metadata.training_architecture_details = {"k_list": [4, 8]}
    assert _levels_of(sae) == [4, 8]


def test_what_has_no_levels_is_one_clear_error(setup):
    model, sae, pictures = setup
    for settings, message in (
        ({}, "this standard SAE says no levels; want a matryoshka_topk"),
        ({"ks": [0]}, r"ks is \[0\]; want numbers of latents from 1 up"),
        ({"ks": [2], "min_images": 30}, "no concept is on 30 images of each half of 40"),
    ):
        with pytest.raises(ValueError, match=message):
            concept_levels(model, sae, pictures, **settings)
