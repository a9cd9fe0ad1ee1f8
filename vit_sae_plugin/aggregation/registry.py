"""Aggregations by name. One decorator adds a new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from torch import nn

from vit_sae_plugin.aggregation.image_aggregation import ImageAggregation
from vit_sae_plugin.near_names import near_names

AggregationRule: TypeAlias = str | Mapping[str, Any] | ImageAggregation
"""A registered name, a name with settings, or a module."""

_CLASSES: dict[str, type[ImageAggregation]] = {}
_T = TypeVar("_T", bound=type[ImageAggregation])


def register_aggregation(name: str) -> Callable[[_T], _T]:
    """Make an aggregation known by a name.

    Registering a class again, as a module reload does, replaces it.

        @register_aggregation("median")
        class MedianOverTokens(ImageAggregation):
            def reduce(self, latents_btd, token_mask):
                if token_mask is not None:
                    latents_btd = latents_btd.masked_fill(~token_mask[..., None], torch.nan)
                return latents_btd.nanmedian(dim=1).values

    A rule is saved by its name: whoever loads it must first import the module that registers it.

    Raises:
        TypeError: the class is no ``ImageAggregation``.
        ValueError: another class has this name.
    """

    def register(aggregation_class: _T) -> _T:
        if not issubclass(aggregation_class, ImageAggregation):
            raise TypeError(
                f"{name!r} is the class {aggregation_class.__qualname__}; want an ImageAggregation"
            )
        known = _CLASSES.get(name)
        if known is not None and _address(known) != _address(aggregation_class):
            raise ValueError(
                f"the name {name!r} already belongs to {_address(known)}; choose another for "
                f"{_address(aggregation_class)}"
            )
        aggregation_class.registered_name = name
        _CLASSES[name] = aggregation_class
        return aggregation_class

    return register


def aggregation_names() -> list[str]:
    """The registered names, in alphabetical order."""
    return sorted(_CLASSES)


def make_aggregation(rule: AggregationRule, **settings: Any) -> ImageAggregation:
    """Build the patch-to-image aggregation that a rule names.

    Args:
        rule: a registered name; a mapping with ``"name"`` and settings, as
            ``ImageAggregation.config`` writes it; or a module, which is returned as it is.
        settings: settings besides those of the rule, such as ``threshold=0.2``.

    Raises:
        ValueError: the name is unknown, or the settings are not those of this aggregation.
    """
    if isinstance(rule, nn.Module):
        if not isinstance(rule, ImageAggregation):
            raise TypeError(f"want an ImageAggregation, got a {type(rule).__qualname__}")
        return rule
    if isinstance(rule, Mapping):
        settings = {**rule, **settings}
        rule = settings.pop("name", None)
    if not isinstance(rule, str) or rule not in _CLASSES:
        near = near_names(str(rule), _CLASSES, n=1)
        raise ValueError(
            f"no aggregation is called {rule!r}"
            + (f" (did you mean {near[0]!r}?)" if near else "")
            + f"; want one of {', '.join(aggregation_names())}, or import the module that "
            "registers it first"
        )
    try:
        return _CLASSES[rule](**settings)
    except TypeError as error:
        raise ValueError(f"aggregation {rule!r} can't take the settings {settings}: {error}") from (
            error
        )


def _address(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
