"""Aggregations by name. One decorator adds a new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from torch import nn

from vit_sae_plugin.near_names import near_names

if TYPE_CHECKING:
    from vit_sae_plugin.aggregation.class_aggregation import ClassAggregation
    from vit_sae_plugin.aggregation.image_aggregation import ImageAggregation


AggregationRule: TypeAlias = "str | Mapping[str, Any] | ImageAggregation"
"""A registered name, a name with settings, or a module."""

_CLASSES: dict[str, dict[str, type[nn.Module]]] = {"image": {}, "class": {}}
_T = TypeVar("_T", bound=type[nn.Module])


def register_aggregation(name: str) -> Callable[[_T], _T]:
    """Make an aggregation known by a name.

    The class is a subclass of :class:`ImageAggregation` (patches to image) or of
    :class:`ClassAggregation` (images to class and data set); the two levels have names of their
    own. Registering a class again, as a module reload does, replaces it.

        @register_aggregation("median")
        class MedianOverTokens(ImageAggregation):
            def reduce(self, latents_btd, token_mask):
                if token_mask is not None:
                    latents_btd = latents_btd.masked_fill(~token_mask[..., None], torch.nan)
                return latents_btd.nanmedian(dim=1).values

    A rule is saved by its name: whoever loads it must first import the module that registers it.

    Raises:
        TypeError: the class is of neither kind.
        ValueError: another class has this name.
    """

    def register(aggregation_class: _T) -> _T:
        level = getattr(aggregation_class, "level", None)
        if level not in _CLASSES:
            raise TypeError(
                f"{aggregation_class.__qualname__} can't be registered as {name!r}: it is neither "
                "an ImageAggregation nor a ClassAggregation; derive it from one of them"
            )
        known = _CLASSES[level].get(name)
        if known is not None and _address(known) != _address(aggregation_class):
            raise ValueError(
                f"the name {name!r} already belongs to {_address(known)}; choose another for "
                f"{_address(aggregation_class)}"
            )
        aggregation_class.registered_name = name  # type: ignore[attr-defined]
        _CLASSES[level][name] = aggregation_class
        return aggregation_class

    return register


def aggregation_names(level: str = "image") -> list[str]:
    """The registered names of a level, ``"image"`` or ``"class"``, in alphabetical order."""
    return sorted(_CLASSES[level])


def make_aggregation(rule: AggregationRule, **settings: Any) -> ImageAggregation:
    """Build the patch-to-image aggregation that a rule names.

    Args:
        rule: a registered name; a mapping with ``"name"`` and settings, as
            :meth:`ImageAggregation.config` writes it; or a module, which is returned as it is.
        settings: settings besides those of the rule, such as ``threshold=0.2``.

    Raises:
        ValueError: the name is unknown, or the settings are not those of this aggregation.
    """
    if isinstance(rule, nn.Module):
        if getattr(rule, "level", None) != "image":
            raise TypeError(f"want an ImageAggregation, got a {type(rule).__qualname__}")
        return rule
    if isinstance(rule, Mapping):
        settings = {**rule, **settings}
        rule = settings.pop("name", None)
    return _build("image", rule, settings)


def make_class_aggregation(name: str, *, n_classes: int, d_sae: int) -> ClassAggregation:
    """Build the image-to-class aggregation of this name, ``"sum"`` or ``"mean"``."""
    return _build("class", name, {"n_classes": n_classes, "d_sae": d_sae})


def _build(level: str, name: object, settings: dict[str, Any]) -> Any:
    classes = _CLASSES[level]
    if not isinstance(name, str) or name not in classes:
        near = near_names(str(name), classes, n=1)
        raise ValueError(
            f"no {level}-level aggregation is called {name!r}"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + f" The registered ones: {', '.join(sorted(classes))}. If it is one of your own, "
            "first import the module that registers it"
        )
    try:
        return classes[name](**settings)
    except TypeError as error:
        raise ValueError(f"aggregation {name!r} can't take the settings {settings}: {error}") from (
            error
        )


def _address(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
