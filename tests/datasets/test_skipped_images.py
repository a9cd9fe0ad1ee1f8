"""The list of skipped images: each once, counted by kind, safely on disk."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.datasets.odd_images import ODD_NAMES
from vit_sae_plugin.datasets import SkippedImages


def example() -> SkippedImages:
    skipped = SkippedImages()
    skipped.add(9, "c.jpg", "too many pixels: 9 x 9, max_pixels=5")
    skipped.add(2, "b.jpg", "empty file")
    skipped.add(4, "a.jpg", "too many pixels: 8 x 8, max_pixels=5")
    skipped.add(2, "b.jpg", "empty file")  # met again in the next epoch
    return skipped


def test_counts_and_order() -> None:
    skipped = example()
    assert len(skipped) == 3
    assert skipped.counts == {"too many pixels": 2, "empty file": 1}
    assert list(skipped.to_frame().columns) == ["index", "id", "reason"]
    assert list(skipped.to_frame()["index"]) == [2, 4, 9]
    assert repr(skipped) == "SkippedImages(3: 2 × too many pixels, 1 × empty file)"


def test_nothing_skipped_is_a_file_with_a_header(tmp_path: Path) -> None:
    SkippedImages().save(tmp_path / "skipped.csv")
    assert (tmp_path / "skipped.csv").read_text() == "index,id,reason\n"
    assert len(SkippedImages.load(tmp_path / "skipped.csv")) == 0


def test_odd_ids_survive_the_file(tmp_path: Path) -> None:
    skipped = SkippedImages()
    for index, name in enumerate(ODD_NAMES):
        skipped.add(index, name, 'a, "reason"\nof two lines')
    path = tmp_path / "skipped.csv"
    skipped.save(path)
    frame = pd.read_csv(path, keep_default_na=False)
    valid = [n.encode("utf-8", "backslashreplace").decode() for n in ODD_NAMES]
    assert list(frame["id"]) == valid
    assert list(frame["reason"]) == ['a, "reason"\nof two lines'] * len(ODD_NAMES)
    assert [p.name for p in tmp_path.iterdir()] == ["skipped.csv"]


def test_a_resumed_run_adds_to_the_list(tmp_path: Path) -> None:
    path = tmp_path / "skipped.csv"
    example().save(path)
    again = SkippedImages.load(path)
    pd.testing.assert_frame_equal(again.to_frame(), example().to_frame())
    again.add(4, "a.jpg", "another reason")
    again.add(1, "d.jpg", "empty file")
    assert len(again) == 4
    assert again.to_frame()["reason"][2] == "too many pixels: 8 x 8, max_pixels=5"


def test_a_failed_write_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "skipped.csv"
    example().save(path)
    before = path.read_bytes()

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full_disk)
    with pytest.raises(OSError, match="No space"):
        SkippedImages().save(path)
    assert path.read_bytes() == before
