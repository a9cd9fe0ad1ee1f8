"""Words that latents may be named with, and how general each of them is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations


@dataclass(frozen=True)
class Vocabulary:
    """Different words, or short phrases, in a fixed order.

    Raises:
        ValueError: there is no word; one is empty, has white space around it or stands twice; the
            counts are not one a word.
    """

    words: tuple[str, ...]
    """What a latent may be called."""
    name: str = "vocabulary"
    """What the list is called."""
    counts: tuple[int, ...] | None = None
    """How often each word occurs where the list comes from, if that is known."""
    broader: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Word → words that are more general, where the list says so, such as WordNet's hypernyms."""

    def __post_init__(self) -> None:
        check_words(self.words, self.name)
        if self.counts is not None and len(self.counts) != len(self.words):
            raise ValueError(
                f"{self.name} has {len(self.counts)} counts; want one for each of its "
                f"{len(self.words)} words"
            )

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def sha256(self) -> str:
        """Hash of the words in their order."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    @cached_property
    def generalizations(self) -> tuple[tuple[int, ...], ...]:
        """For each word the places of the words that say less: ``red`` for ``red circle``.

        Those are the ones whose words are some of the phrase's (of phrases longer than six words,
        single words and runs of them), and those that the list itself calls broader.
        """
        place = {word: at for at, word in enumerate(self.words)}
        by_parts: dict[frozenset[str], list[int]] = {}
        for at, word in enumerate(self.words):
            by_parts.setdefault(frozenset(word.lower().split()), []).append(at)
        found = []
        for word in self.words:
            parts = _parts_of(word.lower().split())
            general = {at for part in parts for at in by_parts.get(part, ())}
            general |= {place[other] for other in self.broader.get(word, ()) if other in place}
            found.append(tuple(sorted(general - {place[word]})))
        return tuple(found)

    def is_same_or_broader(self, general: str, specific: str) -> bool:
        """Whether a word is another one, or says less than it."""
        if general == specific or general in self.broader.get(specific, ()):
            return True
        return set(general.lower().split()) < set(specific.lower().split())


_MOST_PARTS = 6


def _parts_of(words: list[str]) -> set[frozenset[str]]:
    """The sets of words that are in a phrase without being all of it."""
    n, whole = len(words), frozenset(words)
    if n <= _MOST_PARTS:
        parts = {frozenset(part) for k in range(1, n) for part in combinations(words, k)}
    else:
        runs = (words[start:stop] for start, stop in combinations(range(n + 1), 2))
        parts = {frozenset(run) for run in runs}
    return parts - {whole}


def check_words(words: Iterable[str], name: str) -> None:
    """Raise unless a list can be a vocabulary; places are counted from 1, as lines of a file are.

    Raises:
        ValueError: naming the first place that is wrong.
    """
    seen: dict[str, int] = {}
    for line, word in enumerate(words, 1):
        if not word.strip():
            raise ValueError(f"{name}, line {line} is empty; want one word or phrase a line")
        if word != word.strip():
            raise ValueError(
                f"{name}, line {line} is {word!r}, with white space around it; want the word alone"
            )
        if word in seen:
            raise ValueError(
                f"{name}, line {line} repeats {word!r} of line {seen[word]}; want each word once"
            )
        seen[word] = line
    if not seen:
        raise ValueError(f"{name} holds no word; want one word or phrase a line")
