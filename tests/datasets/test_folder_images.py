"""Folders as people have them: classes or none, odd names, links, things that are no images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.datasets.odd_images import ODD_NAMES, encoded, odd_files, write_odd_folder
from tests.datasets.sources import picture
from tests.datasets.test_image_decoding import check
from vit_sae_plugin.datasets import FolderImages, NoReadableImagesError, UnreadableImageError
from vit_sae_plugin.datasets.image_source import printable_id

PNG = encoded(picture(1), "PNG")


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)


def ids_and_labels(source: FolderImages) -> list[tuple[str, int | None]]:
    return [(record.id, record.label) for record in source.records()]


def test_every_kind_of_odd_file_is_used_or_listed(tmp_path: Path) -> None:
    expected = write_odd_folder(tmp_path)
    seen = {record.id: record for record in FolderImages(tmp_path).records()}
    assert sorted(seen) == sorted(expected)
    for id, what in expected.items():
        if what.refusal is None:
            check(seen[id].load(), what)
        else:
            with pytest.raises(UnreadableImageError) as caught:
                seen[id].load()
            assert caught.value.reason.partition(": ")[0] == what.refusal, id


def test_odd_names_are_found_and_shown_on_one_line(tmp_path: Path) -> None:
    content = odd_files()["one pixel.png"][0]
    for name in ODD_NAMES:
        (tmp_path / name).write_bytes(content)
    source = FolderImages(tmp_path)
    assert [source.relative_path(i) for i in range(len(ODD_NAMES))] == sorted(
        ODD_NAMES, key=os.fsencode
    )
    for record in source.records():
        assert record.load().size == (1, 1)
        assert "\n" not in record.id
        record.id.encode("utf-8")
    assert {record.id for record in source.records()} == set(map(printable_id, ODD_NAMES))


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    fill(tmp_path, "b.jpg", "a.png", "notes.txt", ".hidden/c.png")
    source = FolderImages(tmp_path)
    assert ids_and_labels(source) == [("a.png", None), ("b.jpg", None)]
    assert source.class_names is None


def test_sub_folders_are_classes_in_order_empty_ones_too(tmp_path: Path) -> None:
    fill(tmp_path, "zebra/1.png", "ant/deep/er/2.png", "ant/1.png", "top.png")
    (tmp_path / "bee").mkdir()
    source = FolderImages(tmp_path)
    assert source.class_names == ["ant", "bee", "zebra"]
    assert ids_and_labels(source) == [
        ("ant/1.png", 0),
        ("ant/deep/er/2.png", 0),
        ("top.png", None),
        ("zebra/1.png", 2),
    ]
    unlabelled = FolderImages(tmp_path, class_folders=False)
    assert unlabelled.class_names is None
    assert {label for _, label in ids_and_labels(unlabelled)} == {None}


def test_class_names_can_be_given_by_index_or_by_folder_and_may_repeat(tmp_path: Path) -> None:
    fill(tmp_path, "n02012849/1.png", "n03126707/1.png")
    for names in (["crane", "crane"], {"n02012849": "crane", "n03126707": "crane"}):
        source = FolderImages(tmp_path, class_names=names)
        assert source.class_names == ["crane", "crane"]
        assert [label for _, label in ids_and_labels(source)] == [0, 1]
    partly = FolderImages(tmp_path, class_names={"n03126707": "crane"})
    assert partly.class_names == ["n02012849", "crane"]
    with pytest.raises(ValueError, match="class_names has 1 names; want 2"):
        FolderImages(tmp_path, class_names=["crane"])
    with pytest.raises(ValueError, match=r"\['n0'\]; want names of class sub-folders"):
        FolderImages(tmp_path, class_names={"n0": "crane"})


def test_links_to_folders_are_followed_and_each_real_folder_is_read_once(tmp_path: Path) -> None:
    images = tmp_path / "images"
    fill(tmp_path, "images/b/2.png", "images/.store/4.png", "elsewhere/deep/3.png")
    for link, target in {
        "a": "images/b",  # read at its own place, with its own class, though the link comes first
        "b/loop": "images/b",
        "c": "elsewhere/deep",
        "d": "elsewhere",
        "e": "images/.store",  # hidden at its own place
        "f": "elsewhere",
    }.items():
        (images / link).symlink_to(tmp_path / target)
    source = FolderImages(images)
    problem = {}
    for record in source.records():
        try:
            record.load()
        except UnreadableImageError as error:
            problem[record.id] = error.reason
    assert source.class_names == ["a", "b", "c", "d", "e", "f"]
    assert ids_and_labels(source) == [
        ("a", 0),
        ("b/2.png", 1),
        ("b/loop", 1),
        ("c/3.png", 2),
        ("d/deep", 3),
        ("e/4.png", 4),
        ("f", 5),
    ]
    elsewhere = "link to a folder that is read elsewhere"
    assert problem == {"a": elsewhere, "b/loop": "link loop", "d/deep": elsewhere, "f": elsewhere}


def test_folders_that_are_all_linked_to_each_other_are_read_once(tmp_path: Path) -> None:
    names = [str(number) for number in range(8)]
    fill(tmp_path, *(f"{name}/image.png" for name in names))
    for name in names:
        for other in names:
            (tmp_path / name / f"to {other}").symlink_to(tmp_path / other)
    source = FolderImages(tmp_path)
    assert source.n_images == 8 + 8 * 8
    assert sum(id.endswith(".png") for id, _ in ids_and_labels(source)) == 8


def test_folders_nested_deeper_than_the_call_stack(tmp_path: Path) -> None:
    folders = [str(tmp_path)]
    while len(folders) < 1200:
        folders.append(folders[-1] + "/d")
        os.mkdir(folders[-1])
    image = Path(folders[-1] + "/deep.png")
    image.write_bytes(PNG)
    source = FolderImages(tmp_path)
    assert source.n_images == 1
    assert source.record(0).load().size == picture(1).size
    image.unlink()
    for folder in folders[:0:-1]:  # Python's own removal of trees would run out of stack
        os.rmdir(folder)


def test_a_folder_that_may_not_be_read_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "open/1.png", "secret/2.png")
    scandir = os.scandir

    def refusing_scandir(path: str):
        if path.endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing_scandir)
    source = FolderImages(tmp_path)
    assert ids_and_labels(source) == [("open/1.png", 0), ("secret", 1)]
    with pytest.raises(UnreadableImageError, match="no permission to read it: a folder"):
        source.record(1).load()


def test_what_is_no_image_folder_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        FolderImages(tmp_path / "gone")
    fill(tmp_path, "file.tar", "more.csv", "x/more.csv")
    with pytest.raises(NotADirectoryError, match="is a file"):
        FolderImages(tmp_path / "file.tar")
    with pytest.raises(NoReadableImagesError, match=r"0 images; .*otherwise: 2 \.csv, 1 \.tar"):
        FolderImages(tmp_path)


def test_a_file_that_goes_away_later_is_only_skipped(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png")
    source = FolderImages(tmp_path)
    before = source.fingerprint()
    (tmp_path / "1.png").unlink()
    assert source.fingerprint() != before
    with pytest.raises(UnreadableImageError, match="no such file"):
        source.record(0).load()
