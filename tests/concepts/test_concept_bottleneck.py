"""The concept bottleneck: a planted latent is found, weights can be read, bad input is refused."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.evaluation.tiny_setup import Pictures, identity_sae, tiny_hooked_vit
from vit_sae_plugin.analysis import LatentName
from vit_sae_plugin.concepts import concept_bottleneck


@pytest.fixture(scope="module")
def model():
    return tiny_hooked_vit()


class Planted(Pictures):
    """Pictures whose class is how high one latent goes: no other tells it as well."""

    def __init__(self, model, sae, latent, n_classes=2, **settings):
        super().__init__(class_names=tuple("ab" if n_classes == 2 else "abc"), **settings)
        _, cache = model.run_with_cache(self.batch(model), names_filter="blocks.1.hook_resid_post")
        strongest = (
            sae.encode(cache["blocks.1.hook_resid_post"][:, 1:]).amax(1)[:, latent].contiguous()
        )
        bounds = torch.quantile(strongest, torch.linspace(0, 1, n_classes + 1)[1:-1])
        self.labels = torch.bucketize(strongest, bounds).tolist()

    def record(self, index):
        return replace(super().record(index), label=self.labels[index])


@pytest.fixture(scope="module")
def planted(model):
    pytest.importorskip("sklearn")
    sae = identity_sae(model, token_kind="patches")
    train, test = (Planted(model, sae, 5, n_images=120, seed=seed) for seed in (0, 1))
    return sae, train, test


def test_the_planted_concept_is_the_first_to_get_a_weight(model, planted):
    sae, train, test = planted
    names = {5: LatentName("tall"), 6: "other"}
    found = concept_bottleneck(model, sae, train, test, names=names, penalties=(10, 0.003, 0.05))
    path = found.path
    assert list(path.index) == [0.003, 0.05, 10]
    assert path["n_concepts"].is_monotonic_increasing
    few = found.weights[0.05]
    assert few.iloc[0][["class", "latent", "name"]].tolist() == ["b", 5, "tall"]
    assert few.iloc[0]["weight"] > 0
    assert path.loc[0.05, "accuracy"] > 0.8
    assert (path["accuracy_low"] <= path["accuracy"]).all()
    np.testing.assert_allclose(path["below_probe"], path["probe_accuracy"] - path["accuracy"])
    unnamed = found.weights[10]["latent"].map(lambda latent: latent not in names)
    assert (
        found.weights[10]["name"][unnamed] == found.weights[10]["latent"][unnamed].map(str)
    ).all()
    assert set(found.report().tables) == {"bottleneck", "weights"}


def test_named_latents_alone(model, planted):
    sae, train, test = planted
    found = concept_bottleneck(
        model, sae, train, test, names={5: "tall", 9: "wide"}, only_named=True, penalties=(10,)
    )
    assert set(found.weights[10]["name"]) <= {"tall", "wide"}
    assert found.path.loc[10, "n_concepts"] <= 2
    assert found.settings["n_named"] == 2


def test_three_classes_have_a_classifier_each(model, planted):
    sae = planted[0]
    train, test = (Planted(model, sae, 5, 3, n_images=90, seed=seed) for seed in (0, 1))
    found = concept_bottleneck(model, sae, train, test, penalties=(1,))
    assert set(found.weights[1]["class"]) == {"a", "b", "c"}
    weight = found.weights[1].query("latent == 5").set_index("class")["weight"]
    assert weight["c"] > 0 > weight["a"]


def test_bad_input_is_one_clear_error(model, planted, monkeypatch):
    sae, train, test = planted

    def refused(match, *images, **settings):
        with pytest.raises(ValueError, match=match) as error:
            concept_bottleneck(model, sae, *(images or (train, test)), **settings)
        assert "\n" not in str(error.value)

    refused(r"penalties are \[0\]; want numbers above 0", penalties=[0])
    refused("have other classes; want images of the", train, Pictures(4))
    refused("only_named is True, but no latent has a name", only_named=True)
    refused("names has a latent 64; want 0 to 63", names={64: "x"})
    unlabelled = Pictures(6, labelled=False)
    refused("no image of pictures has a label", unlabelled, unlabelled)
    one = Pictures(6, class_names=("cat",))
    refused("has images of one class; want two or more", one, one)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"pip install 'vit-sae-plugin\[concepts\]'"):
        concept_bottleneck(model, sae, train, test)
