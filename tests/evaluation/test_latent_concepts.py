"""For each latent the concept it finds best, on a neuron whose patches are known."""

import numpy as np
import pandas as pd
import pytest
import torch

from tests.evaluation.test_localization import known_concepts
from tests.evaluation.tiny_setup import Pictures, identity_sae, tiny_hooked_vit
from vit_sae_plugin.evaluation.latent_concepts import latent_concepts
from vit_sae_plugin.evaluation.ranking import Ranks


def test_a_latents_concept_is_the_one_it_ranks_first_less_chance():
    model, pictures = tiny_hooked_vit(), Pictures(n_images=16)
    sae = identity_sae(model)
    with torch.no_grad():
        sae.b_enc[9] = -1e6  # a dead one
    masks = known_concepts(model, pictures)
    settings = {"concept_masks": masks, "min_positive_patches": 1, "batch_size_images": 5}
    table = latent_concepts(model, sae, pictures, **settings)
    assert table.index.name == "latent"
    found = table.loc[5]
    assert (found["kind"], found["concept"]) == ("neuron", "high")
    assert found["above_chance"] == pytest.approx(1)
    assert found["average_precision"] == pytest.approx(1)
    assert found["is_same_in_halves"]
    assert pd.isna(table.loc[9, "concept"])
    assert np.isnan(table.loc[9, "above_chance"])
    assert not table.loc[9, "is_same_in_halves"]
    # most patches are low, so a latent about neither is not called low for that
    low = np.stack([masks(i)[("neuron", "low")] for i in range(16)])
    assert low.mean() > 0.5
    others = table.drop(index=[5, 9]).dropna()
    assert set(others["concept"]) == {"high", "low"}
    assert (others["above_chance"] < 1).all()


def test_chance_is_taken_away():
    """A feature that is the same everywhere ranks every concept by chance: its share."""
    ranks = Ranks(torch.zeros(1, 10))
    assert ranks.average_precision(torch.arange(4)).item() == pytest.approx(0.4)


def test_too_few_patches_are_refused():
    model, pictures = tiny_hooked_vit(), Pictures(n_images=4)
    masks = known_concepts(model, pictures)
    with pytest.raises(ValueError, match="no concept has 1000 patches in both halves of 4 images"):
        latent_concepts(
            model, identity_sae(model), pictures, concept_masks=masks, min_positive_patches=1000
        )
