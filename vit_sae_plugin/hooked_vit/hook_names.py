"""Hook names: which exist, which layer they belong to, and what a wrong one was meant to be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from vit_sae_plugin.hooked_vit.errors import HookNameError
from vit_sae_plugin.near_names import near_names

NamesFilter = str | Iterable[str] | Callable[[str], bool] | None


def layer_of(name: str) -> int | None:
    """The block a hook belongs to; None for the hooks before and after the blocks."""
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match.group(1)) if match else None


class Reach(NamedTuple):
    """The part of the model that a forward pass runs."""

    start_at_layer: int | None = None
    """The first block that runs; None: the embedding and all blocks from the first."""

    stop_at_layer: int | None = None
    """The first block that does not; None: all blocks run, and the head."""

    def reaches(self, name: str) -> bool:
        """Whether the forward pass comes by the hook of this name."""
        layer = layer_of(name)
        if layer is None:
            if name in ("hook_embed", "hook_pos_embed", "hook_full_embed"):
                return self.start_at_layer is None
            return self.stop_at_layer is None
        starts_before = self.start_at_layer is None or layer >= self.start_at_layer
        return starts_before and (self.stop_at_layer is None or layer < self.stop_at_layer)

    def why_not(self, name: str) -> str:
        """In words, why a hook that exists is not reached."""
        start, stop = self
        layer = layer_of(name)
        before = name in ("hook_embed", "hook_pos_embed", "hook_full_embed")
        if start is not None and (before or (layer is not None and layer < start)):
            return (
                f"lies in front of start_at_layer={start}; want a lower start_at_layer, or a hook "
                "that is reached"
            )
        return (
            f"lies beyond stop_at_layer={stop}; want a higher stop_at_layer, or a hook that is "
            "reached"
        )


WHOLE_PASS = Reach()


def near_hooks(name: str, names: Iterable[str], n: int = 5) -> list[str]:
    """The existing names most like ``name``, or else those that end alike."""
    names = list(names)
    tail = name.rsplit(".", 1)[-1]
    alike = near_names(name, names, n=n, cutoff=0.6)
    return alike or [other for other in names if other.endswith(tail)][:n] or names[:n]


def require_names(
    wanted: Sequence[str],
    existing: Iterable[str],
    reach: Reach = WHOLE_PASS,
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
            why = f" ({reason})" if reason else ""
            raise HookNameError(
                f"there is no hook {name!r}{why}; near names: "
                f"{', '.join(near_hooks(name, existing))} (all: list(model.hook_dict))"
            )
        if not reach.reaches(name):
            reached = [other for other in existing if reach.reaches(other)]
            raise HookNameError(
                f"hook {name!r} {reach.why_not(name)}; near names: "
                f"{', '.join(near_hooks(name, reached))}"
            )


def select_names(
    names_filter: NamesFilter,
    existing: Iterable[str],
    reach: Reach = WHOLE_PASS,
    missing_reasons: dict[str, str] | None = None,
) -> list[str]:
    """The hook names that a filter asks for, in the order in which they fire.

    Args:
        names_filter: a name, any collection of names, a function from name to bool, or None
            for every hook that is reached.
        existing: all hook names, in firing order.
        reach: the blocks that the forward pass runs.
        missing_reasons: why hooks of the vocabulary are not there, by name.

    Raises:
        HookNameError: a name does not exist or is not reached, or a function matches nothing.
        TypeError: the filter is none of the above.
    """
    existing = list(existing)
    if names_filter is None:
        return [name for name in existing if reach.reaches(name)]
    if callable(names_filter):
        matching = [name for name in existing if names_filter(name)]
        chosen = [name for name in matching if reach.reaches(name)]
        if not chosen:
            raise HookNameError(
                f"names_filter matches {len(matching)} hooks, of which none is reached "
                f"(start_at_layer={reach.start_at_layer}, stop_at_layer={reach.stop_at_layer}); "
                f"some names: {', '.join(existing[:6])}, … (all: list(model.hook_dict))"
            )
        return chosen
    if isinstance(names_filter, str):
        names_filter = [names_filter]
    wanted = list(names_filter) if isinstance(names_filter, Iterable) else [names_filter]
    if not all(isinstance(name, str) for name in wanted):
        raise TypeError(
            f"names_filter is {names_filter!r}; want a hook name, a collection of names, a "
            "function from name to bool, or None"
        )
    require_names(wanted, existing, reach, missing_reasons)
    return [name for name in existing if name in set(wanted)]
