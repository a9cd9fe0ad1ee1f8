"""Names and notes of latents, and the file they are kept in: ``names.json`` beside an atlas.

The report writes the same file when names that were typed in the browser are exported::

    {"format": "vit-sae latent names", "version": 1, "sae_sha256": "…",
     "names": {"17": {"name": "red rings", "note": "", "score": null, "source": "typed",
                      "editor": "Ada", "edited": "2026-01-31T12:00:00Z"}}}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vit_sae_plugin.analysis.atlas.sae_json import SAEJson

NAMES_FILE = "names.json"
_FILE = SAEJson(
    "vit-sae latent names", 1, "names", "names of latents", "a file saved from a report"
)


@dataclass(frozen=True)
class LatentName:
    """What a latent is called, and how it came by that name."""

    name: str
    """The name; empty where there is only a note."""
    note: str = ""
    """Anything else worth keeping about the latent."""
    score: float | None = None
    """How well the name fits, by the measure of its source; None: not measured."""
    source: str | None = None
    """How the name came about: ``"typed"``, or the method that found it."""
    editor: str | None = None
    """Who, or what, wrote it last."""
    edited: str | None = None
    """When that was, as an ISO 8601 time."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, is_text = getattr(self, field.name), field.name in ("name", "note")
            if field.name == "score":
                good = value is None or (_is_number(value) and math.isfinite(value))
                wanted = "a finite number or None"
            else:
                good = isinstance(value, str) or (value is None and not is_text)
                wanted = "a text" if is_text else "a text or None"
            if not good:
                raise ValueError(f"{field.name} is {value!r}; want {wanted}")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is said: such an entry of a file takes an earlier one away."""
        return not self.name and not self.note


def write_names(path: str | Path, names: Mapping[int, LatentName], sae_sha256: str) -> None:
    """Write names of an SAE's latents, in the order of the latents."""
    entries = {str(latent): asdict(names[latent]) for latent in sorted(names)}
    _FILE.write(path, entries, sae_sha256, indent=1)


def read_names(path: str | Path, *, sae_sha256: str, d_sae: int) -> dict[int, LatentName]:
    """The names in a file, by latent; entries that say nothing among them.

    Args:
        path: a file that the report or ``write_names`` wrote.
        sae_sha256: hash of the SAE whose latents they are to be.
        d_sae: how many latents it has.

    Raises:
        ValueError: it is no such file, or damaged, or about another SAE.
    """
    path = Path(path)
    entries = _FILE.read(path, sae_sha256)
    if not isinstance(entries, dict):
        raise ValueError(f"{path} is damaged: its names are {entries!r}; want an object")
    return dict(_entry(path, key, value, d_sae) for key, value in entries.items())


def _entry(path: Path, key: str, value: Any, d_sae: int) -> tuple[int, LatentName]:
    if not (key.isascii() and key.isdecimal() and int(key) < d_sae):
        raise ValueError(f"{path} names a latent {key!r}; want 0 to {d_sae - 1}")
    known = {field.name for field in fields(LatentName)}
    if not isinstance(value, dict) or "name" not in value or not value.keys() <= known:
        raise ValueError(f"{path} is damaged at latent {key}: want {', '.join(sorted(known))}")
    try:
        return int(key), LatentName(**value)
    except ValueError as error:
        raise ValueError(f"{path} is damaged at latent {key}: {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
