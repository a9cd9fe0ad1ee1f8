"""Print every snippet of README and docs: where it stands, and whether a test runs it.

    python -m scripts.list_snippets

The same rules are used by ``tests/docs/test_snippets.py``, which runs what is listed as run.
"""

from __future__ import annotations

from collections import Counter

from tests.docs.pages import PAGES, Snippet, snippets
from tests.docs.stand_ins import exemption

DONE = {
    "python": "run",
    "command": "run",
    "file": "written, then read by the commands that name it",
    "output": "compared with what the snippet above prints",
    "inline": "program and options exist",
}
"""Kind → what the tests do with it."""


def what_is_done(snippet: Snippet) -> str:
    rule = exemption(snippet)
    return f"not run: {rule.why}" if rule else DONE[snippet.kind]


def main() -> None:
    counts: Counter[tuple[str, bool]] = Counter()
    for page in PAGES:
        for snippet in snippets(page):
            exempt = exemption(snippet) is not None
            counts[snippet.kind, exempt] += 1
            first = " ".join(snippet.text.split())[:60]
            print(f"{snippet.place:28} {snippet.kind:8} {first:60}  {what_is_done(snippet)}")
    print()
    for (kind, exempt), n in sorted(counts.items()):
        print(f"{n:4} {kind}, {'not run' if exempt else DONE[kind]}")


if __name__ == "__main__":
    main()
