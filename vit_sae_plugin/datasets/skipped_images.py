"""The list of images a run could not use, with the reason for each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from vit_sae_plugin.atomic_files import write_file_atomically
from vit_sae_plugin.datasets.image_source import valid_text


class SkippedImages:
    """Each unusable image once, however often it was met (a run over many epochs meets it often).

    Holds one short entry per skipped image, no pixels.
    """

    def __init__(self) -> None:
        self._id_and_reason: dict[int, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self._id_and_reason)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{n} × {kind}" for kind, n in self.counts.items())
        return f"SkippedImages({len(self)}{': ' + kinds if kinds else ''})"

    def add(self, index: int, id: str, reason: str) -> None:
        """Note the image at ``index`` of the source; one that is noted already stays as it is.

        What is not valid Unicode in a text is kept as an escape.
        """
        self._id_and_reason.setdefault(index, (valid_text(id), valid_text(reason)))

    @property
    def counts(self) -> dict[str, int]:
        """Kind of reason (the part before the first ": ") → number of images, most first."""
        kinds = (reason.partition(": ")[0] for _, reason in self._id_and_reason.values())
        return dict(Counter(kinds).most_common())

    def to_list(self) -> list[tuple[int, str, str]]:
        """Index, id and reason of each, in the order in which they were noted."""
        return [(index, *rest) for index, rest in self._id_and_reason.items()]

    def to_frame(self) -> pd.DataFrame:
        """Columns ``index``, ``id``, ``reason``, in the order of the source."""
        rows = [(index, *self._id_and_reason[index]) for index in sorted(self._id_and_reason)]
        return pd.DataFrame(rows, columns=["index", "id", "reason"])

    def save(self, csv_path: str | Path) -> None:
        """Write ``to_frame()`` as UTF-8 CSV.

        The file appears whole or not at all, and is read back unchanged by
        ``pd.read_csv(csv_path, keep_default_na=False)``, whatever the ids hold.
        """
        frame = self.to_frame()
        write_file_atomically(
            Path(csv_path), lambda path: frame.to_csv(path, index=False, encoding="utf-8")
        )

    @classmethod
    def load(cls, csv_path: str | Path) -> SkippedImages:
        """Read what ``save`` wrote, so that a resumed run adds to its earlier list."""
        skipped = cls()
        frame = pd.read_csv(
            csv_path, keep_default_na=False, dtype={"index": int, "id": str, "reason": str}
        )
        for index, id, reason in frame.itertuples(index=False):
            skipped.add(index, id, reason)
        return skipped
