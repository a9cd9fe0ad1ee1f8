"""The texts a user types, and the objects a notebook holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets import sources
from vit_sae_plugin.datasets import (
    ArrayImages,
    FolderImages,
    HuggingFaceImages,
    NoReadableImagesError,
    ShapeScenes,
    WebDatasetImages,
    check_source_from_file,
    open_images,
)


@pytest.mark.parametrize(
    ("text", "split", "n_images", "n_objects", "seed"),
    [
        ("shapes", "train", 100_000, (1, 3), 0),
        ("shapes:test", "test", 100_000, (1, 3), 0),
        ("shapes:test?n_images=2000&n_objects=1&seed=3", "test", 2000, (1, 1), 3),
        ("shapes?n_objects=1-2", "train", 100_000, (1, 2), 0),
        ("shapes:train?n_objects=2,3&n_images=5", "train", 5, (2, 3), 0),
    ],
)
def test_shapes(
    text: str, split: str, n_images: int, n_objects: tuple[int, int], seed: int
) -> None:
    source = open_images(text)
    assert isinstance(source, ShapeScenes)
    seen = (source.split, source.n_images, source.n_objects, source.seed)
    assert seen == (split, n_images, n_objects, seed)


def test_arguments_win_over_the_text() -> None:
    assert open_images("shapes:test?n_images=2000", n_images=7).n_images == 7


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "what?n=1 & shapes"
    sources.write_folder(root)
    for form in (root, str(root), f"folder:{root}"):
        source = open_images(form)
        assert isinstance(source, FolderImages)
        assert source.n_images == sources.N_IMAGES
    plain = tmp_path / "plain"
    sources.write_folder(plain)
    limited = open_images(f"folder:{plain}?max_pixels=100&class_folders=no&max_aspect_ratio=3")
    assert isinstance(limited, FolderImages)
    assert (limited.limits.max_pixels, limited.limits.max_aspect_ratio) == (100, 3)
    assert limited.class_names is None
    assert open_images(plain, class_names=["a", "a", "b"]).class_names == ["a", "a", "b"]
    # A folder called like a prefix is reached as any path is.
    monkeypatch.chdir(tmp_path)
    sources.write_folder(tmp_path / "shapes")
    assert isinstance(open_images("./shapes"), FolderImages)
    assert isinstance(open_images("shapes"), ShapeScenes)


def test_shards(tmp_path: Path) -> None:
    pattern = sources.write_shards(tmp_path)
    source = open_images(f"wds:{pattern}?image_key=png&label_key=cls")
    assert isinstance(source, WebDatasetImages)
    assert len(source.shards) == 3
    matched = open_images(f"wds:{tmp_path}/part-?.tar")
    assert isinstance(matched, WebDatasetImages)
    assert matched.shards == source.shards


@pytest.mark.parametrize(
    "shards",
    [
        "pipe:touch {ran}",
        "pipe:touch {ran}?label_key=cls",
        "a.tar::pipe:touch {ran}",
        "{{pipe:touch ,}}{ran}",
        "a.tar::https://example.org/b.tar",
        "PIPE:touch {ran}",
        "-",
    ],
)
def test_what_a_file_names_starts_no_program(shards: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    text = "wds:" + shards.format(ran=ran)
    for refuse in (lambda: open_images(text, from_file=True), lambda: check_source_from_file(text)):
        with pytest.raises(ValueError, match=r"start a program.*name them yourself: --images"):
            refuse()
    assert not ran.exists()


def test_what_the_user_types_may_run_a_command(tmp_path: Path) -> None:
    sources.write_shards(tmp_path)
    typed = open_images(f"wds:pipe:cat {tmp_path}/part-0.tar")
    assert next(iter(typed.records())).load().size == sources.picture(0).size


def test_what_a_file_names_is_opened_where_it_is_local(tmp_path: Path) -> None:
    pattern = sources.write_shards(tmp_path)
    for text in ("shapes:test", tmp_path, f"wds:{pattern}?image_key=png", "wds:file:///x/a.tar"):
        check_source_from_file(text)
    records = open_images(f"wds:{pattern}", from_file=True).records()
    assert len(list(records)) == sources.N_IMAGES


def test_a_shard_may_be_called_like_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources.write_shards(tmp_path)
    (tmp_path / "part-0.tar").rename(tmp_path / "pipe:touch ran;.tar")
    monkeypatch.chdir(tmp_path)
    for from_file in (False, True):
        source = open_images("wds:pipe*.tar", from_file=from_file)
        assert next(iter(source.records())).load().size == sources.picture(0).size
    assert not (tmp_path / "ran").exists()


def test_objects() -> None:
    source = ArrayImages(sources.arrays())
    assert open_images(source) is source
    with pytest.raises(ValueError, match="opened already"):
        open_images(source, class_names=["a"])
    assert isinstance(open_images(sources.arrays(), labels=sources.labels()), ArrayImages)
    assert open_images([Image.new("L", (2, 2))] * 3).n_images == 3
    assert open_images(Image.new("L", (2, 2))).n_images == 1
    assert isinstance(open_images(sources.hugging_face_rows()), HuggingFaceImages)
    stream = sources.hugging_face_rows().to_iterable_dataset()
    assert open_images(stream).is_streaming


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("no/such/folder", FileNotFoundError, r"'no/such/folder'.*hf:NAME"),
        ("shape:train", FileNotFoundError, "of no other form"),
        ("folder:no/such", FileNotFoundError, "no folder"),
        ("wds:", ValueError, "names no images"),
        ("wds:${NOT_SET}.tar", ValueError, "can't be expanded.*NOT_SET"),
        ("wds:{a.tar", ValueError, "can't be expanded"),
        ("", ValueError, "names no images"),
        ("shapes:valid", ValueError, "split is 'valid'"),
        (
            "shapes?n_image=5",
            ValueError,
            "'n_image'; want one of shapes: n_images, n_objects",
        ),
        ("shapes?n_images=many", ValueError, "option n_images is 'many'"),
        ("hf:x?streaming=perhaps", ValueError, "want true or false"),
        (7, TypeError, "images is a int; want a text"),
        (np.zeros((2, 2)), TypeError, "uint8"),
        ([], NoReadableImagesError, "0 images; want 1 or more"),
    ],
)
def test_what_is_not_understood_says_what_is(
    wrong: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_images(wrong)
