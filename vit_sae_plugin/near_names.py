"""What a wrong name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near_names(name: str, names: Iterable[str], n: int = 5, cutoff: float = 0.5) -> list[str]:
    """The existing names most like ``name``, whatever their case, the nearest first.

    Args:
        name: what was asked for.
        names: what exists.
        n: how many to give at most.
        cutoff: likeness from 0 to 1 that a name must have (``difflib``'s ratio).
    """
    by_lower = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=cutoff)
    return [by_lower[other] for other in close]
