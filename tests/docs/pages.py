"""What a page of the documentation holds to be run: its snippets, line by line."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```", re.S | re.M
)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_SHELL = {"sh", "bash", "shell", "console", "powershell"}
_PROGRAMS = ("vit-sae", "python", "torchrun", "make", "pip")


@dataclass(frozen=True)
class Snippet:
    """One thing to be run or compared.

    ``kind`` is ``python``, ``command`` (one line of shell), ``inline`` (a command within the text),
    ``file`` (a block with ``title="NAME"``, which stands for that file), ``output`` (what the
    snippet right above it prints) or ``text`` (any other block). ``line`` is its first line on the
    page, counted from 1.
    """

    page: str
    line: int
    kind: str
    text: str
    title: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def snippets(page: Path) -> list[Snippet]:
    """All of a page, in the order in which they stand there."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name
    found: list[Snippet] = []
    end_of_last = None
    for fence in _FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 2
        info, inside = fence["info"].strip(), textwrap.dedent(fence["text"])
        language, _, options = info.partition(" ")
        title = re.search(r'title="([^"]+)"', options)
        between = "…" if end_of_last is None else text[end_of_last : fence.start()]
        end_of_last = fence.end()
        if title:
            found.append(Snippet(name, line, "file", inside, title[1]))
        elif language == "python":
            found.append(Snippet(name, line, "python", inside))
        elif language in _SHELL:
            found += [Snippet(name, at, "command", one) for at, one in _commands(inside, line)]
        elif language == "text" and not between.strip():
            found.append(Snippet(name, line, "output", inside))
        else:
            found.append(Snippet(name, line, "text", inside))
    return sorted(found + list(_inline(text, name)), key=lambda one: one.line)


def _commands(block: str, line: int) -> Iterator[tuple[int, str]]:
    """Each command of a block with its line, without comments; a backslash joins two lines."""
    whole, start = "", line
    for number, part in enumerate(block.splitlines(), start=line):
        if not whole:
            start = number
        whole += part
        if whole.endswith("\\"):
            whole = whole[:-1] + " "
            continue
        if whole.strip() and not whole.lstrip().startswith("#"):
            yield start, " ".join(re.sub(r"\s#\s.*$", "", whole).split())
        whole = ""


def _inline(text: str, name: str) -> Iterator[Snippet]:
    """Commands within the text: code spans that begin with a program and go on."""
    blank = _FENCE.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), text)
    for span in _INLINE.finditer(blank):
        words = span[1].split()
        if words[0] in _PROGRAMS and len(words) > 1:
            line = text.count("\n", 0, span.start()) + 1
            yield Snippet(name, line, "inline", " ".join(words))
