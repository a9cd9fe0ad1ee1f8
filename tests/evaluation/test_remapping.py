"""The causal study: every condition equals its plain computation; controls and shares by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from tests.evaluation.tiny_setup import Pictures, tiny_hooked_vit, tiny_sae
from vit_sae_plugin.attached_sae.attached_pair import AttachedPair
from vit_sae_plugin.evaluation.bootstrap import bootstrap_ratio
from vit_sae_plugin.evaluation.classifier_heads import zero_shot_head
from vit_sae_plugin.evaluation.like_frequency import N_BINS, like_frequency
from vit_sae_plugin.evaluation.remapping import (
    LatentSets,
    RemappingCondition,
    RemappingResult,
    RemappingStudy,
)
from vit_sae_plugin.evaluation.stream_change import (
    shares_of_change,
    squared_changes,
    squared_length_in_span,
)
from vit_sae_plugin.hooked_vit import HookedViT

HOOK = "blocks.1.hook_resid_post"
NAMES = ["cat", "dog", "owl"]


@pytest.fixture(scope="module")
def plain():
    return tiny_hooked_vit()


@pytest.fixture(scope="module")
def adapted(plain):
    """The same model with other weights below the SAE, and none above it."""
    module = copy.deepcopy(plain.bare_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.visual.transformer.resblocks[:2].parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return HookedViT.from_module(
        module, preprocess=plain.preprocess, tokenizer=plain.tokenizer, model_name="adapted"
    )


def _sae(model, which):
    if which != "layer_norm":
        return tiny_sae(model, HOOK, which)
    torch.manual_seed(0)
    sae = StandardSAE(
        StandardSAEConfig(d_in=model.cfg.d_model, d_sae=48, normalize_activations="layer_norm")
    )
    sae.cfg.metadata.hook_name = HOOK
    return sae


def _sets(d_sae=48):
    generator = np.random.default_rng(0)
    risen = generator.random((3, d_sae)) < 0.2
    used = ~risen & (generator.random((3, d_sae)) < 0.6)
    return LatentSets(risen, used, np.where(risen, 0.7, generator.random((3, d_sae))))


def _heads(plain, adapted):
    return (
        zero_shot_head(plain, NAMES, ["a {}"]),
        zero_shot_head(adapted, NAMES, ["a photo of a {}", "{}"]),
    )


@pytest.mark.parametrize("which", ["all", "patches", "layer_norm"])
@torch.no_grad()
def test_each_condition_equals_one_whole_pass_with_its_latents(plain, adapted, which):
    pair = AttachedPair(plain, adapted, _sae(plain, which))
    sets, heads = _sets(), _heads(plain, adapted)
    seen: list[torch.Tensor] = []

    def recording(head):
        def logits(embeds):
            seen.append((embeds, head(embeds)))
            return seen[-1][1]

        return logits

    study = RemappingStudy(pair, sets, (recording(heads[0]), recording(heads[1])), n_draws=2)
    pixels, labels = Pictures(3).batch(plain), torch.tensor([0, 2, 1])
    right, _ = study.run(pixels, labels)
    # the plain model's conditions come first, then the adapted one's, each in their order
    order = [c for model in ("plain", "adapted") for c in study.conditions if c.model == model]
    found = dict(zip(order, seen, strict=True))
    both = {"plain": pair.plain, "adapted": pair.adapted}
    z = {name: attached.activations(pixels) for name, attached in both.items()}
    latents = {name: attached.encode(z[name]) for name, attached in both.items()}
    for one, (embeds, logits) in found.items():
        other = "plain" if one.model == "adapted" else "adapted"
        attached = both[one.model]

        def edit(h, one=one, other=other):  # what the condition says, in words of the whole latents
            new = h.clone()
            for at, label in enumerate(labels.tolist()):
                if one.change == "only":
                    chosen = {
                        "used": sets.used[label],
                        "all": np.ones(48, bool),
                        "random": ~like_frequency(
                            ~sets.used, sets.frequency, seed=0, draw=one.draw
                        )[label],
                    }[one.latents]
                    new[at][:, ~chosen] = 0
                else:
                    chosen = {
                        "risen": sets.risen[label],
                        "all": np.ones(48, bool),
                        "random": like_frequency(sets.risen, sets.frequency, seed=0, draw=one.draw)[
                            label
                        ],
                    }[one.latents]
                    new[at][:, chosen] = latents[other][at][:, chosen]
            return new

        if one.change in ("none", "other head"):
            wanted = attached.model(pixels)
        elif one.latents == "stream":
            wanted = attached.run_with_acts(pixels, z[other])
        else:
            wanted = attached.splice(pixels, edit, use_error_term=one.error_term)
        torch.testing.assert_close(embeds, wanted, rtol=1e-3, atol=1e-4)
        swapped = one.change == "other head"
        head = heads[int((one.model == "adapted") != swapped)]
        torch.testing.assert_close(logits, head(embeds))
    for at, one in enumerate(study.conditions):
        assert right[:, at].tolist() == (found[one][1].argmax(-1) == labels).tolist()
    # above the SAE the models are one: with the whole stream exchanged each is the other
    for one in (
        RemappingCondition("adapted", "held", "stream", True, 0),
        RemappingCondition("plain", "put in", "stream", True, 0),
    ):
        other = "plain" if one.model == "adapted" else "adapted"
        whole = (
            both[other].model(pixels)
            if which != "patches"
            else both[one.model].run_with_acts(pixels, z[other])
        )
        torch.testing.assert_close(found[one][0], whole)


@torch.no_grad()
def test_a_model_beside_itself_changes_nothing(plain):
    pair = AttachedPair(plain, tiny_hooked_vit(), _sae(plain, "all"))
    head = zero_shot_head(plain, NAMES, ["a {}"])
    study = RemappingStudy(pair, _sets(), (head, head), n_draws=1)
    right, moved = study.run(Pictures(6).batch(plain), torch.arange(6) % 3)
    for at, one in enumerate(study.conditions):
        if one.change != "only":
            assert right[:, at].tolist() == right[:, 0].tolist(), one
    assert moved.whole.tolist() == moved.error.tolist() == [0.0] * 6
    shares = shares_of_change([moved])
    assert shares[["share", "low", "high"]].isna().all(None)  # 0 of 0 is missing
    result = RemappingResult(study.conditions, right, np.arange(6) % 3, np.arange(6), [moved])
    table = result.table()
    assert table["share_of_gain"].isna().all()  # there is no gain to share


def test_the_table_by_hand():
    conditions = [
        RemappingCondition("plain", "none", "", True, 0),
        RemappingCondition("adapted", "none", "", True, 0),
        RemappingCondition("adapted", "held", "risen", True, 0),
        RemappingCondition("adapted", "held", "random", True, 0),
        RemappingCondition("adapted", "held", "random", True, 1),
    ]
    # of 8 images: plain 2 right, adapted 6, held 3, random 5 and 7
    n_right = [2, 6, 3, 5, 7]
    correct = np.stack([np.arange(8) < n for n in n_right], axis=1)
    table = RemappingResult(conditions, correct, np.zeros(8, int), np.arange(8), []).table()
    held = table.loc[("adapted", "held", "risen", True)]
    assert held["accuracy"] == 3 / 8
    assert held["share_of_gain"] == (3 - 2) / (6 - 2)
    assert held["minus_random"] == (3 - 6) / 8
    random = table.loc[("adapted", "held", "random", True)]
    assert random["accuracy"] == 6 / 8
    assert random["share_of_gain"] == 1
    assert np.isnan(random["minus_random"])
    assert len(table) == 4
    assert (table["n_images"] == 8).all()
    assert held["low"] <= held["accuracy"] <= held["high"]


def test_a_ratio_is_missing_where_its_denominator_may_be_zero():
    ratio = bootstrap_ratio([1.0, 3.0, 2.0], [2.0, 6.0, 4.0])
    assert (ratio.mean, ratio.low, ratio.high) == (0.5, 0.5, 0.5)
    undecided = bootstrap_ratio([[1.0, 1.0]] * 4, [[1.0, 2.0], [-1, 2], [1, 2], [1, 2]])
    assert np.isnan(undecided.mean[0])
    assert undecided.mean[1] == 0.5
    with pytest.raises(ValueError, match="NaN"):
        bootstrap_ratio([np.nan], [1.0])


def test_random_latents_are_like_the_chosen_in_frequency_and_not_the_same():
    generator = np.random.default_rng(0)
    frequency = generator.random((4, 400)).round(1)
    chosen = generator.random((4, 400)) < 0.2
    drawn = like_frequency(chosen, frequency, seed=3)
    for label in range(4):
        for value in np.unique(frequency):
            there = frequency[label] == value
            assert (chosen & there)[label].sum() == (drawn & there)[label].sum()
    assert not (chosen & drawn).any()
    assert np.array_equal(drawn, like_frequency(chosen, frequency, seed=3))
    assert not np.array_equal(drawn, like_frequency(chosen, frequency, seed=3, draw=1))
    # three of four chosen, one bin: the fourth, and two of the chosen
    few = like_frequency(np.array([[True, True, True, False]]), np.full((1, 4), 0.5), seed=0)
    assert few.sum() == 3
    assert few[0, 3]
    # never active is a bin of its own
    silent = like_frequency(np.array([[True, False, False]]), np.array([[0, 0.01, 0]]), seed=0)
    assert silent.tolist() == [[False, False, True]]
    assert N_BINS == 20


def test_squared_lengths_by_hand():
    vector = torch.tensor([3.0, 4.0, 0.0])
    eye = torch.eye(3)
    assert squared_length_in_span(vector, eye[:1]) == 9
    assert squared_length_in_span(vector, torch.stack([eye[0], 2 * eye[0]])) == 9  # dependent
    assert squared_length_in_span(vector, eye[:0]) == 0
    assert squared_length_in_span(vector, torch.tensor([[1.0, 1.0, 0.0]])) == pytest.approx(24.5)
    z = torch.zeros(1, 1, 3), torch.tensor([[[3.0, 4.0, 0.0]]])
    x_hat = torch.zeros(1, 1, 3), torch.tensor([[[3.0, 1.0, 0.0]]])
    active = torch.tensor([[[True, False, False]]])
    moved = squared_changes(z, x_hat, active, eye)
    assert (moved.whole, moved.described, moved.error) == (25, 10, 9)
    assert (moved.sampled, moved.span) == (25, 9)
    assert moved.random_span in (0, 9, 16)  # one direction of three
    shares = shares_of_change([moved, moved])
    assert shares["share"].round(6).tolist()[:3] == [0.4, 0.36, 0.36]
    assert (shares["n_images"] == 2).all()


def test_what_is_out_of_range_is_refused(plain, adapted):
    pair = AttachedPair(plain, adapted, _sae(plain, "all"))
    with pytest.raises(ValueError, match="n_draws is 0; want 1"):
        RemappingStudy(pair, _sets(), _heads(plain, adapted), n_draws=0)
    with pytest.raises(ValueError, match="sets are of 40 latents, but the SAE has 48"):
        RemappingStudy(pair, _sets(40), _heads(plain, adapted))
