"""Hook names: which exist, which layer they belong to, and what a wrong one was meant to be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

from vit_sae_plugin.hooked_vit.errors import HookNameError

NamesFilter = str | Iterable[str] | Callable[[str], bool] | None


def layer_of(name: str) -> int | None:
    """The block a hook belongs to; None for the hooks before and after the blocks."""
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match.group(1)) if match else None


def is_before_stop(name: str, stop_at_layer: int | None) -> bool:
    """Whether a forward pass that stops in front of block ``stop_at_layer`` reaches the hook."""
    if stop_at_layer is None:
        return True
    layer = layer_of(name)
    if layer is None:
        return name in ("hook_embed", "hook_pos_embed", "hook_full_embed")
    return layer < stop_at_layer


def near_names(name: str, names: Iterable[str], n: int = 5) -> list[str]:
    """The existing names most like ``name``, the most similar first."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=n, cutoff=0.6)
    tail = name.rsplit(".", 1)[-1]
    return close or [other for other in names if other.endswith(tail)][:n] or names[:n]


def require_names(
    wanted: Sequence[str],
    existing: Iterable[str],
    stop_at_layer: int | None = None,
    missing_reasons: dict[str, str] | None = None,
) -> None:
    """Check that all names exist and are reached.

    Raises:
        HookNameError: for the first name that is not; lists near names.
    """
    existing = list(existing)
    known = set(existing)
    for name in wanted:
        if name not in known:
            short = re.sub(r"^blocks\.\d+\.", "blocks.*.", name)
            reasons = missing_reasons or {}
            reason = reasons.get(name) or reasons.get(short)
            why = f" This model has none: {reason}." if reason else ""
            raise HookNameError(
                f"There is no hook named {name!r}.{why} Near names: "
                f"{', '.join(near_names(name, existing))}. All names: list(model.hook_dict)."
            )
        if not is_before_stop(name, stop_at_layer):
            reached = [other for other in existing if is_before_stop(other, stop_at_layer)]
            raise HookNameError(
                f"Hook {name!r} lies beyond stop_at_layer={stop_at_layer}: the forward pass ends "
                f"in front of block {stop_at_layer}. Raise stop_at_layer, or use a hook that is "
                f"reached: {', '.join(near_names(name, reached))}."
            )


def select_names(
    names_filter: NamesFilter,
    existing: Iterable[str],
    stop_at_layer: int | None = None,
    missing_reasons: dict[str, str] | None = None,
) -> list[str]:
    """The hook names that a filter asks for, in the order in which they fire.

    Args:
        names_filter: a name, any collection of names, a function from name to bool, or None
            for every hook that is reached.
        existing: all hook names, in firing order.
        stop_at_layer: block in front of which the forward pass ends.

    Raises:
        HookNameError: a name does not exist or is not reached, or a function matches nothing.
        TypeError: the filter is none of the above.
    """
    existing = list(existing)
    if names_filter is None:
        return [name for name in existing if is_before_stop(name, stop_at_layer)]
    if callable(names_filter):
        matching = [name for name in existing if names_filter(name)]
        chosen = [name for name in matching if is_before_stop(name, stop_at_layer)]
        if not chosen:
            raise HookNameError(
                f"names_filter matches {len(matching)} hooks, of which none is reached"
                f" (stop_at_layer={stop_at_layer}). Some names: {', '.join(existing[:6])}, … "
                f"All names: list(model.hook_dict)."
            )
        return chosen
    if isinstance(names_filter, str):
        names_filter = [names_filter]
    wanted = list(names_filter) if isinstance(names_filter, Iterable) else [names_filter]
    if not all(isinstance(name, str) for name in wanted):
        raise TypeError(
            f"names_filter must be a hook name, a collection of names, a function from name to "
            f"bool, or None; got {names_filter!r}."
        )
    require_names(wanted, existing, stop_at_layer, missing_reasons)
    return [name for name in existing if name in set(wanted)]
