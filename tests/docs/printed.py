"""Whether a snippet prints what its page shows."""

from __future__ import annotations

import ast
import io
import math
import re
import tokenize
from collections.abc import Iterator
from typing import Any

TOLERANCE = 0.02
"""By how much a printed number may differ from the page's, as a share of the larger."""

_NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|(?<=-)\d+|\bnan\b", re.I)
_SHAPE = re.compile(r"\[(\w+(?:, \w+)+)\]")


def differences(shown: str, printed: str, *, same_numbers: bool, any_of: set[str]) -> list[str]:
    """Where ``printed`` is not what the page shows; empty if it is.

    Runs of white space count as one space. The page may show a part: it has to stand in what is
    printed without a gap. Words are compared as they are, but for those of ``any_of``, any of which
    may stand for another. Numbers are compared to ``TOLERANCE`` if ``same_numbers``, and otherwise,
    where the snippet runs on a stand-in, only have to be numbers.
    """
    want, got = _parts(shown, any_of), _parts(printed, any_of)
    places = [
        start
        for start in range(len(got) - len(want) + 1)
        if all(a[0] == b[0] for a, b in zip(want, got[start:], strict=False))
    ]
    if not places:
        return [f"the page shows\n{shown}\nbut what is printed is\n{printed}"]
    if not same_numbers:
        return []
    found = [_other_numbers(want, got[start : start + len(want)]) for start in places]
    return min(found, key=len)


def _parts(text: str, any_of: set[str]) -> list[tuple[str, float | None]]:
    """Words and numbers; of a number the word is ``#``."""
    if any_of:
        words = "|".join(sorted(map(re.escape, any_of), key=len, reverse=True))
        text = re.sub(rf"\b(?:{words})\b", "WORD", text)
    parts: list[tuple[str, float | None]] = []
    for word in text.split():
        at = 0
        for number in _NUMBER.finditer(word):
            if word[at : number.start()]:
                parts.append((word[at : number.start()], None))
            value = number[0].replace(",", "").replace("−", "-")
            parts.append(("#", float(value)))
            at = number.end()
        if word[at:]:
            parts.append((word[at:], None))
    return parts


def _other_numbers(want: list[Any], got: list[Any]) -> list[str]:
    return [
        f"the page shows {a:g}; {b:g} is printed"
        for (_, a), (_, b) in zip(want, got, strict=True)
        if a is not None and not math.isclose(a, b, rel_tol=TOLERANCE) and not (a != a and b != b)
    ]


def values_in_comments(block: str) -> Iterator[tuple[str, str]]:
    """(expression, comment) of each line whose comment tells the value: what a test can look up.

    A comment tells a value if it begins with a figure, or holds a shape such as ``[64, d_in]``.
    """
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(block).readline)
        if token.type == tokenize.COMMENT
    }
    for statement in ast.parse(block).body:
        comment = comments.get(statement.end_lineno or 0, "")
        if not (comment[:1].isdigit() or _SHAPE.search(comment)):
            continue
        if isinstance(statement, ast.Expr):
            yield ast.unparse(statement.value), comment
        elif isinstance(statement, ast.Assign):
            yield ast.unparse(statement.targets[0]), comment


def check_value(value: Any, comment: str, sizes: dict[str, int]) -> None:
    """Raises AssertionError if a value isn't what its comment says.

    Named sizes in a shape, such as ``d_in``, stand for one number throughout ``sizes``, which
    collects them. The shape of a list is that of each of its members.
    """
    shape = _SHAPE.search(comment)
    if shape is None:
        assert comment in str(value), f"{value} is shown as {comment}"
        return
    if isinstance(value, list):
        for one in value:
            check_value(one, comment, sizes)
        return
    sides = shape[1].split(", ")
    assert len(sides) == len(value.shape), f"{tuple(value.shape)} is shown as {comment}"
    for side, length in zip(sides, value.shape, strict=True):
        wanted = int(side) if side.isdigit() else sizes.setdefault(side, length)
        assert length == wanted, f"{tuple(value.shape)} is shown as {comment}; {side} is {wanted}"
