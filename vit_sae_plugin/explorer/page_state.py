"""What a visitor has chosen, and the link that brings it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import quote, urlencode

MAX_FACTOR = 4.0
"""The most that a latent can be multiplied by; or, if added, how many times its usual strength."""

Ranking = Literal["strength", "answer"]
RANKINGS: tuple[str, ...] = get_args(Ranking)

_MOST_CLASSES, _LONGEST_CLASS, _LONGEST_TEMPLATE, _MOST_CHANGES = 1000, 200, 200, 64

_T = TypeVar("_T")


@dataclass(frozen=True)
class Limits:
    """What numbers in a link may be."""

    n_images: int
    """Pictures that can be picked."""
    d_sae: int
    """Latents."""
    grid: tuple[int, int] | None
    """Rows and columns of patches; None where the SAE reads none."""
    n_shown: int
    """Latents that can be coloured at a time."""


@dataclass(frozen=True)
class PageState:
    """What a visitor has chosen; everything but a picture of their own fits into a link."""

    image: int | None = None
    """One of the pictures on offer, by its place among them; None: the visitor's own, or none."""
    classes: str | None = None
    """The class list as it was typed; None: the one that the page begins with."""
    template: str | None = None
    """Name of a set of prompt templates, or one with ``{}``; None: the one it begins with."""
    ranking: Ranking = "strength"
    """Which latents are listed first: the strongest, or those that move the answer."""
    patch: tuple[int, int] | None = None
    """Row and column of the patch whose latents are listed; None: those of the whole picture."""
    shown: tuple[int, ...] = ()
    """Latents in colours on the picture."""
    factors: Mapping[int, float] = field(default_factory=dict)
    """Latent → what it is multiplied by; 0 removes it. Those left as they are aren't here."""
    added: Mapping[int, float] = field(default_factory=dict)
    """Latent → what is added to it in all tokens, in times its usual strength; none is 0."""
    opened: int | None = None
    """The latent whose reference images are open."""

    def to_query(self) -> str:
        """The state as the query of a URL; empty for the state that a page begins with."""
        values = {
            "image": self.image,
            "classes": self.classes,
            "template": self.template,
            "rank": None if self.ranking == "strength" else self.ranking,
            "patch": None if self.patch is None else f"{self.patch[0]}-{self.patch[1]}",
            "show": ",".join(map(str, self.shown)) or None,
            "change": _pairs(self.factors),
            "add": _pairs(self.added),
            "latent": self.opened,
        }
        given = {name: value for name, value in values.items() if value is not None}
        return urlencode(given, quote_via=quote, safe=",-{}")

    @classmethod
    def from_query(cls, query: Mapping[str, str], limits: Limits) -> tuple[PageState, list[str]]:
        """The state that a link holds, and what in it could not be read, a line for each.

        Whatever the query holds, it can only choose among what the page offers: images and latents
        by number, within ``limits``. What is wrong is left out.
        """
        problems: list[str] = []

        def read(name: str, parse: Callable[[str], _T], otherwise: _T) -> _T:
            text = query.get(name)
            if text is None:
                return otherwise
            try:
                return parse(text)
            except ValueError as error:
                problems.append(f"in the link, {error}")
                return otherwise

        nothing: Any = None
        state = cls(
            image=read("image", lambda text: _number(text, limits.n_images, "image"), nothing),
            classes=read("classes", _checked_classes, nothing),
            template=read("template", checked_template, nothing),
            ranking=read("rank", checked_ranking, "strength"),
            patch=read("patch", lambda text: _patch(text, limits.grid), nothing),
            shown=read("show", lambda text: _shown(text, limits), ()),
            factors=read("change", lambda text: _factors(text, limits, left=1), {}),
            added=read("add", lambda text: _factors(text, limits, left=0), {}),
            opened=read("latent", lambda text: _number(text, limits.d_sae, "latent"), nothing),
        )
        return state, problems

    @property
    def n_changes(self) -> int:
        """How many changes of latents there are."""
        return len(self.factors) + len(self.added)


def parse_classes(text: str) -> tuple[str, ...]:
    """The different class names in a list that somebody typed.

    One a line; or, in a single line, with commas between them.

    Raises:
        ValueError: there is none, there are too many, or one is too long.
    """
    parts = text.splitlines() if "\n" in text.strip() or text.endswith("\n") else text.split(",")
    names = tuple(dict.fromkeys(" ".join(part.split()) for part in parts if part.strip()))
    if not names:
        raise ValueError("the class list has no name; want one or more, with commas between them")
    if len(names) > _MOST_CLASSES:
        raise ValueError(f"the class list has {len(names)} names; want at most {_MOST_CLASSES}")
    if longest := max(names, key=len):
        _check_length("a class name", longest, _LONGEST_CLASS)
    return names


def classes_as_text(names: Sequence[str]) -> str:
    """A class list as ``parse_classes`` reads it."""
    if not any("," in name for name in names):
        return ", ".join(names)
    return "\n".join(names) + ("\n" if len(names) == 1 else "")


def checked_factor(value: Any) -> float:
    """A factor from the page.

    Raises:
        ValueError: it is no number from 0 to ``MAX_FACTOR``.
    """
    is_number = isinstance(value, int | float | str) and not isinstance(value, bool)
    with suppress(ValueError, OverflowError):
        if is_number and 0 <= float(value) <= MAX_FACTOR:
            return float(value)
    raise ValueError(f"the factor is {_short(value)}; want 0 to {MAX_FACTOR:g}")


def checked_number(value: Any, n: int, of_what: str) -> int:
    """A number from the page.

    Raises:
        ValueError: it is no whole number from 0 to ``n`` − 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n:
        raise ValueError(f"the {of_what} is {_short(value)}; want 0 to {n - 1}")
    return value


def checked_template(text: str) -> str:
    """A template, or the name of several, from the page; whether it is one is found out later.

    Raises:
        ValueError: it is too long.
    """
    _check_length("the template", text, _LONGEST_TEMPLATE)
    return text


def checked_ranking(value: Any) -> Ranking:
    """An order of latents from the page.

    Raises:
        ValueError: there is no such order.
    """
    if value not in RANKINGS:
        raise ValueError(f"the order is {_short(value)}; want {' or '.join(RANKINGS)}")
    return value


def _number(text: str, n: int, of_what: str) -> int:
    is_number = text.isascii() and text.isdecimal() and len(text) < 12
    return checked_number(int(text) if is_number else text, n, of_what)


def _checked_classes(text: str) -> str:
    parse_classes(text)
    return text


def _patch(text: str, grid: tuple[int, int] | None) -> tuple[int, int]:
    if grid is None:
        raise ValueError(f"the patch is {_short(text)}, but this SAE reads no patches")
    row, _, column = text.partition("-")
    return _number(row, grid[0], "row"), _number(column, grid[1], "column")


def _shown(text: str, limits: Limits) -> tuple[int, ...]:
    shown = tuple(dict.fromkeys(_number(one, limits.d_sae, "latent") for one in text.split(",")))
    if len(shown) > limits.n_shown:
        raise ValueError(f"{len(shown)} latents are to be shown; want at most {limits.n_shown}")
    return shown


def _pairs(factors: Mapping[int, float]) -> str | None:
    return ",".join(f"{latent}x{factor:g}" for latent, factor in factors.items()) or None


def _factors(text: str, limits: Limits, left: float) -> dict[int, float]:
    pairs = [part.partition("x") for part in text.split(",")]
    if len(pairs) > _MOST_CHANGES:
        raise ValueError(f"{len(pairs)} latents are changed; want at most {_MOST_CHANGES}")
    found = {_number(one, limits.d_sae, "latent"): checked_factor(by) for one, _, by in pairs}
    return {latent: factor for latent, factor in found.items() if factor != left}


def _check_length(what: str, text: str, longest: int) -> None:
    if len(text) > longest:
        raise ValueError(f"{what} has {len(text)} letters; want at most {longest}")


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 40 else f"{said[:40]}…"
