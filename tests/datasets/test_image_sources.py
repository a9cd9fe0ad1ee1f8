"""Every source gives the same images, ids that tell them apart, labels by index."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import sources
from tests.datasets.sources import CLASSES, EVERY_SOURCE, N_IMAGES, SAME_IMAGES
from vit_sae_plugin.datasets import ArrayImages, FolderImages, ImageSource, open_images
from vit_sae_plugin.datasets.image_source import fingerprint_of, printable_id

Make = Callable[[Path], ImageSource]


@pytest.mark.parametrize("make", SAME_IMAGES.values(), ids=SAME_IMAGES)
def test_images_and_labels_are_those_that_were_put_in(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path)
    records = list(source.records())
    assert [record.index for record in records] == list(range(N_IMAGES))
    assert [record.label for record in records] == sources.labels()
    for number, record in enumerate(records):
        assert np.array_equal(np.asarray(record.load()), np.asarray(sources.picture(number)))
    assert source.class_names == CLASSES  # two classes of one name stay two
    assert source.n_images == (None if source.is_streaming else N_IMAGES)


@pytest.mark.parametrize("make", EVERY_SOURCE.values(), ids=EVERY_SOURCE)
def test_records_start_anywhere_and_have_unique_ids(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path)
    records = list(source.records())
    ids = [record.id for record in records]
    assert len(set(ids)) == N_IMAGES
    for start in (0, 1, 9, N_IMAGES - 1, N_IMAGES, N_IMAGES + 5):
        later = list(source.records(start))
        assert [(r.index, r.id, r.label) for r in later] == [
            (r.index, r.id, r.label) for r in records[start:]
        ]


@pytest.mark.parametrize("make", EVERY_SOURCE.values(), ids=EVERY_SOURCE)
def test_only_map_style_sources_have_single_records(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path)
    if source.is_streaming:
        with pytest.raises(TypeError, match="is a stream"):
            source.record(0)
        return
    assert source.record(7).index == 7
    for outside in (-1, N_IMAGES):
        with pytest.raises(IndexError):
            source.record(outside)
    copied = pickle.loads(pickle.dumps(source))  # for workers that are not forked
    assert copied.record(7).id == source.record(7).id
    assert copied.fingerprint() == source.fingerprint()


@pytest.mark.parametrize("make", EVERY_SOURCE.values(), ids=EVERY_SOURCE)
def test_what_a_source_shows_of_itself(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path)
    size = "a stream" if source.is_streaming else f"{N_IMAGES} images"
    n_classes = len(source.class_names or ())
    kind = type(source).__name__
    assert repr(source) == f"<{kind} {source.name!r}: {size}, {n_classes} classes>"


def test_names_of_classes_can_be_written_to_any_file(tmp_path: Path) -> None:
    names = ["\ud800", "a\nb", "図"]
    sources.write_folder(tmp_path / "folder")
    shards = sources.write_shards(tmp_path / "shards")
    opened = [
        open_images(tmp_path / "folder", class_names=names),
        open_images(tmp_path / "folder", class_names={"class_0": "\ud800", "class_2": "図"}),
        open_images(f"wds:{shards}", class_names=names),
        open_images(sources.arrays(), class_names=names, name="\udc80"),
        open_images(sources.hugging_face_rows(), class_names=names),
    ]
    for source in opened:
        shown = "\n".join([source.name, *source.class_names])
        assert shown.encode("utf-8")
        assert source.class_names[0] == r"\ud800"
        assert source.class_names[2] == "図"


@pytest.mark.parametrize("make", EVERY_SOURCE.values(), ids=EVERY_SOURCE)
def test_equal_data_have_equal_fingerprints(make: Make, tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b" / "c")
    assert first.fingerprint() == second.fingerprint()
    assert len(first.fingerprint()) == 64


def test_a_fingerprint_notices_what_changes(tmp_path: Path) -> None:
    from tests.datasets.odd_images import encoded

    root = tmp_path / "folder"
    sources.write_folder(root)
    seen = {FolderImages(root).fingerprint()}
    (root / "class_0" / "000.png").write_bytes(encoded(sources.picture(0), "BMP"))
    seen.add(FolderImages(root).fingerprint())
    (root / "class_0" / "000.png").rename(root / "class_0" / "0000.png")
    seen.add(FolderImages(root).fingerprint())
    seen.add(FolderImages(root, class_folders=False).fingerprint())
    assert len(seen) == 4

    plain = ArrayImages(sources.arrays())
    other = sources.arrays()
    other[0, 0, 0, 0] += 1
    labelled = ArrayImages(sources.arrays(), labels=sources.labels())
    assert len({s.fingerprint() for s in (plain, ArrayImages(other), labelled)}) == 3

    rows = sources.hugging_face_rows()
    from vit_sae_plugin.datasets import HuggingFaceImages

    orders = (rows, rows.shuffle(seed=0), rows.select(range(22)), rows.remove_columns("bird"))
    assert len({HuggingFaceImages(some).fingerprint() for some in orders}) == 4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_fingerprints_tell_where_a_part_ends(some: list[str], others: list[str]) -> None:
    assert (fingerprint_of(some) == fingerprint_of(others)) == (some == others)


NAMES = st.text(st.characters(codec=None), max_size=6)


@settings(deadline=None)
@given(NAMES, NAMES)
def test_printable_ids_are_one_line_of_text_and_stay_apart(name: str, other: str) -> None:
    id = printable_id(name)
    assert id.encode("utf-8").decode("utf-8") == id
    assert len(id.splitlines()) <= 1
    assert (printable_id(other) == id) == (other == name)


def test_printable_ids_by_hand() -> None:
    assert printable_id("dogs/Ünï 図.jpg") == "dogs/Ünï 図.jpg"
    assert printable_id("a\nb\udcff\\.jpg") == r"a\nb\xff\\.jpg"
