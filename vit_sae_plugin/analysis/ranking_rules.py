"""By which aggregations the reference images of an analysis are ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vit_sae_plugin.aggregation import AggregationRule, ImageAggregation, make_aggregation
from vit_sae_plugin.analysis.typical_activation import PUBLISHED_THRESHOLD
from vit_sae_plugin.saes.image_aggregation import plain_rule

DEFAULT_AGGREGATIONS = ("mean", "count", "max")
_WITH_THRESHOLD = ("count", "share")


def default_rules(
    saved: Mapping[str, Any] | None, threshold: float | None
) -> list[AggregationRule]:
    """The rule saved with an SAE, if it has one, and then the usual ones.

    Args:
        saved: ``sae.cfg.aggregation``. Its threshold counts, unless it is the published one, which
            SAEs are saved with where none was chosen.
        threshold: one that was asked for takes the place of the saved one.
    """
    if saved is None:
        return list(DEFAULT_AGGREGATIONS)
    rule = dict(saved)
    if threshold is not None or rule.get("threshold") == PUBLISHED_THRESHOLD:
        rule.pop("threshold", None)
    return [rule, *(name for name in DEFAULT_AGGREGATIONS if name != rule["name"])]


def named_rules(
    aggregations: Sequence[AggregationRule] | Mapping[str, AggregationRule], n_prefix_tokens: int
) -> dict[str, dict[str, Any] | ImageAggregation]:
    """Each rule under its name; one without a threshold of its own has none yet.

    Args:
        aggregations: names, rules or modules, or a mapping that names them.
        n_prefix_tokens: tokens in front of the patches.

    Raises:
        ValueError: there is none, one is unknown or not registered, or two have one name.
    """
    named: dict[str, dict[str, Any] | ImageAggregation] = {}
    pairs = (
        aggregations.items()
        if isinstance(aggregations, Mapping)
        else ((None, rule) for rule in aggregations)
    )
    for name, rule in pairs:
        if not isinstance(rule, ImageAggregation):
            rule = plain_rule(rule, n_prefix_tokens=n_prefix_tokens)
        config = make_aggregation(rule).config()  # raises where it is unknown or not registered
        name = name or config["name"]
        if not name.isidentifier() or name in named:
            raise ValueError(
                f"aggregations need different names made of letters, digits and _, got {name!r}; "
                "pass a mapping name -> rule to name them"
            )
        named[name] = rule
    if not named:
        raise ValueError("aggregations is empty; want at least one, such as 'mean'")
    return named


def describe(rules: Mapping[str, dict[str, Any] | ImageAggregation]) -> dict[str, dict[str, Any]]:
    """Each rule as plain values."""
    return {
        name: rule.config() if isinstance(rule, ImageAggregation) else rule
        for name, rule in rules.items()
    }


def built(rule: dict[str, Any] | ImageAggregation, threshold: float) -> ImageAggregation:
    """The module of a rule; the threshold is for one that has none of its own."""
    if isinstance(rule, dict) and rule["name"] in _WITH_THRESHOLD:
        rule = {"threshold": threshold, **rule}
    return make_aggregation(rule)
