"""Patch-to-image aggregations, worked by hand and against their invariances."""

import re
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_sae_plugin.aggregation import (
    CountAboveThreshold,
    ImageAggregation,
    aggregation_names,
    make_aggregation,
    register_aggregation,
)

# one image of a class token and three patches, two latents
LATENTS = torch.tensor([[[0.8, 0.0], [0.2, 0.5], [0.0, 0.1], [1.0, 0.2]]])
WITHOUT_LAST = torch.tensor([[True, True, True, False]])
INF = float("inf")

BY_HAND = [
    ({"name": "sum"}, [2.0, 0.8]),
    ({"name": "mean"}, [0.5, 0.2]),
    ({"name": "max"}, [1.0, 0.5]),
    ({"name": "count"}, [2, 1]),  # strictly above 0.2
    ({"name": "count", "threshold": 0.0}, [3, 3]),
    ({"name": "share"}, [0.5, 0.25]),
    ({"name": "kth_largest", "k": 2}, [0.8, 0.2]),
    ({"name": "kth_largest", "k": 4}, [0.0, 0.0]),
    ({"name": "cls", "n_prefix_tokens": 1}, [0.8, 0.0]),
    ({"name": "sum", "tokens": "patches", "n_prefix_tokens": 1}, [1.2, 0.8]),
    ({"name": "mean", "tokens": "patches", "n_prefix_tokens": 1}, [0.4, 0.8 / 3]),
    ({"name": "max", "tokens": "patches", "n_prefix_tokens": 1}, [1.0, 0.5]),
    ({"name": "count", "tokens": "patches", "n_prefix_tokens": 1}, [1, 1]),
    ({"name": "max", "tokens": "patches", "n_prefix_tokens": 0}, [1.0, 0.5]),
]
BY_HAND_MASKED = [
    ({"name": "sum"}, [1.0, 0.6]),
    ({"name": "mean"}, [1 / 3, 0.2]),
    ({"name": "max"}, [0.8, 0.5]),
    ({"name": "count"}, [1, 1]),
    ({"name": "share"}, [1 / 3, 1 / 3]),
    ({"name": "kth_largest", "k": 2}, [0.2, 0.1]),
    ({"name": "cls", "n_prefix_tokens": 1}, [0.8, 0.0]),
    ({"name": "mean", "tokens": "patches", "n_prefix_tokens": 1}, [0.1, 0.3]),
]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("rule", "expected"), BY_HAND)
def test_values_worked_by_hand(rule, expected, sparse):
    latents = LATENTS.to_sparse() if sparse else LATENTS
    torch.testing.assert_close(make_aggregation(rule)(latents), torch.tensor([expected]).float())


@pytest.mark.parametrize(("rule", "expected"), BY_HAND_MASKED)
def test_tokens_outside_the_mask_do_not_count(rule, expected):
    values = make_aggregation(rule)(LATENTS, WITHOUT_LAST)
    torch.testing.assert_close(values, torch.tensor([expected]).float())


@pytest.mark.parametrize("name", ["mean", "max", "share", "kth_largest"])
def test_an_image_without_valid_tokens_has_no_value(name):
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert make_aggregation(name)(LATENTS, nothing).isnan().all()
    assert make_aggregation("count")(LATENTS, nothing).tolist() == [[0, 0]]
    assert make_aggregation("sum")(LATENTS, nothing).tolist() == [[0, 0]]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    name=st.sampled_from(["sum", "mean", "max", "count", "share", "kth_largest"]),
    masked=st.booleans(),
)
def test_images_are_independent_and_tokens_have_no_order(seed, name, masked):
    generator = torch.Generator().manual_seed(seed)
    latents = (torch.rand(5, 6, 7, generator=generator) - 0.5).relu()
    mask = torch.rand(5, 6, generator=generator) > 0.3 if masked else None
    if mask is not None:
        mask[:, :3] = True  # as many valid tokens as kth_largest asks for
    aggregation = make_aggregation(name)

    def values(images, tokens=slice(None)):
        some = latents[images][:, tokens]
        some_mask = None if mask is None else mask[images][:, tokens]
        return aggregation(some, some_mask)

    whole = aggregation(latents, mask)
    order = torch.randperm(5, generator=generator)
    token_order = torch.randperm(6, generator=generator)
    torch.testing.assert_close(values(order), whole[order])
    torch.testing.assert_close(torch.cat([values(slice(0, 2)), values(slice(2, 5))]), whole)
    torch.testing.assert_close(values(slice(None), token_order), whole)


def test_a_rule_survives_being_written_down():
    for rule, _ in BY_HAND:
        aggregation = make_aggregation(rule)
        again = make_aggregation(aggregation.config())
        assert type(again) is type(aggregation)
        assert again.config() == aggregation.config()
        assert aggregation.config().items() >= rule.items()
    assert make_aggregation(aggregation) is aggregation


def test_one_decorator_adds_an_aggregation():
    @register_aggregation("above_own_mean")
    class AboveOwnMean(ImageAggregation):
        def __init__(self, *, factor: float = 1.0, **tokens):
            super().__init__(**tokens)
            self.factor = factor

        def reduce(self, latents_btd, token_mask):
            return latents_btd.mean(dim=1) * self.factor

    rule = make_aggregation("above_own_mean", factor=2.0)
    assert rule.config() == {"name": "above_own_mean", "factor": 2.0, "tokens": "all"}
    assert "above_own_mean" in aggregation_names()
    torch.testing.assert_close(rule(LATENTS), torch.tensor([[1.0, 0.4]]))
    with pytest.raises(ValueError, match="'count' already belongs to"):
        register_aggregation("count")(AboveOwnMean)
    register_aggregation("count")(CountAboveThreshold)  # the same class again is harmless
    with pytest.raises(TypeError, match="is the class Linear; want an ImageAggregation"):
        register_aggregation("no")(torch.nn.Linear)


def test_the_documented_example_is_a_median():
    example = re.search(r"( +)@register_aggregation.*?values\n", register_aggregation.__doc__, re.S)
    names = {"register_aggregation": register_aggregation, "ImageAggregation": ImageAggregation}
    exec(textwrap.dedent(example.group()), {"torch": torch, **names})
    median = make_aggregation("median")
    one_left = torch.tensor([[False, True, False, False]])
    torch.testing.assert_close(median(LATENTS), torch.tensor([[0.2, 0.1]]))
    torch.testing.assert_close(median(LATENTS, WITHOUT_LAST), torch.tensor([[0.2, 0.1]]))
    torch.testing.assert_close(median(LATENTS, one_left), torch.tensor([[0.2, 0.5]]))
    assert median(LATENTS, ~torch.ones(1, 4, dtype=torch.bool)).isnan().all()


def test_without_a_name_a_rule_can_not_be_written_down():
    class Loudest(type(make_aggregation("max"))):  # what "max" is called, this is not
        pass

    rule = Loudest()
    assert "tokens='all'" in repr(rule)
    torch.testing.assert_close(rule(LATENTS), make_aggregation("max")(LATENTS))
    with pytest.raises(ValueError, match=r"Loudest is not registered.*@register_aggregation"):
        rule.config()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("mine", "import the module that registers it first"),
        ("maen", "did you mean 'mean'"),
        ({"threshold": 1.0}, "no aggregation is called None"),
        ({"name": "mean", "threshold": 1.0}, "can't take the settings"),
        ({"name": "count", "threshold": -1.0}, "threshold is -1.0; want 0 or more"),
        ({"name": "kth_largest", "k": 0}, "k is 0; want 1 or more"),
        ({"name": "mean", "tokens": "patch"}, "tokens is 'patch'; want 'all'"),
        ({"name": "mean", "tokens": "patches"}, "n_prefix_tokens None; want the number"),
        ({"name": "cls", "n_prefix_tokens": 0}, "n_prefix_tokens 0; want 1 or more"),
    ],
)
def test_wrong_rules_are_explained(rule, message):
    with pytest.raises(ValueError, match=message):
        make_aggregation(rule)


def test_wrong_latents_are_explained():
    with pytest.raises(ValueError, match=r"shape \(4, 2\); want \[batch, token, d_sae\]"):
        make_aggregation("mean")(LATENTS[0])
    with pytest.raises(ValueError, match=r"token_mask has shape \(1, 3\); want \(1, 4\)"):
        make_aggregation("mean")(LATENTS, WITHOUT_LAST[:, :3])
    with pytest.raises(ValueError, match="k is 5; want 1 to 4, the tokens of an image"):
        make_aggregation("kth_largest", k=5)(LATENTS)
    with pytest.raises(ValueError, match="want patches behind the prefix tokens"):
        make_aggregation("mean", tokens="patches", n_prefix_tokens=4)(LATENTS)
