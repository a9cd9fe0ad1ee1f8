"""What is asked for, in words: ``red:1, circle:1, striped:-0.5``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vit_sae_plugin.near_names import near_names


@dataclass(frozen=True)
class WeightedConcept:
    """One concept of a query."""

    name: str
    """What it is called; ``latent 17`` for a number."""
    weight: float
    """Above 0: wanted; below: not wanted."""
    latents: tuple[int, ...]
    """The latents that stand for it."""
    is_word: bool
    """Whether it was asked for by its name, not as a number."""


def parse_query(text: str, names: Mapping[int, str], d_sae: int) -> tuple[WeightedConcept, ...]:
    """The concepts of a query, with their latents.

    Args:
        text: names or numbers of latents, separated by commas, each with a weight after a colon;
            1 where none is given.
        names: latent → its name; several latents may share one.
        d_sae: number of latents.

    Raises:
        ValueError: no such name (near ones are listed) or latent, a weight that is no number or is
            0, a concept that stands twice, or no concept at all.
    """
    by_name: dict[str, list[int]] = {}
    for latent, name in names.items():
        by_name.setdefault(name.casefold(), []).append(latent)
    found = [
        _concept(part.strip(), names, by_name, d_sae) for part in text.split(",") if part.strip()
    ]
    if not found:
        raise ValueError(f"the query {text!r} holds no concept; want such as 'red:1,striped:-0.5'")
    seen = [concept.name for concept in found]
    if twice := {name for name in seen if seen.count(name) > 1}:
        raise ValueError(f"the query {text!r} names {min(twice)!r} twice; want each concept once")
    return tuple(found)


def _concept(
    part: str, names: Mapping[int, str], by_name: Mapping[str, list[int]], d_sae: int
) -> WeightedConcept:
    name, colon, said = part.rpartition(":")
    name, said = (name.strip(), said.strip()) if colon else (part, "1")
    try:
        weight = float(said)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0:
        raise ValueError(f"the weight of {name!r} is {said!r}; want a number other than 0")
    number = name.removeprefix("latent").removeprefix("#").strip()
    if number.isdecimal():
        latent = int(number)
        if latent >= d_sae:
            raise ValueError(f"there is no latent {latent}; want 0 to {d_sae - 1}")
        return WeightedConcept(f"latent {latent}", weight, (latent,), False)
    latents = by_name.get(name.casefold())
    if latents is None:
        known = sorted(set(names.values()))
        near = near_names(name, known)
        said_near = f"near names: {', '.join(near)}" if near else "none is near"
        raise ValueError(
            f"no latent is named {name!r} ({said_near}; {len(known)} names in all); want one of "
            "them, or a latent's number"
        )
    return WeightedConcept(names[latents[0]], weight, tuple(sorted(latents)), True)
