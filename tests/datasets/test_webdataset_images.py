"""Shards: labels, patterns, samples without an image, shards that break off."""

from __future__ import annotations

import json
import sys
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.datasets import sources
from tests.datasets.odd_images import encoded
from tests.datasets.sources import N_IMAGES, add_to_tar, picture
from vit_sae_plugin.datasets import UnreadableImageError, WebDatasetImages

PNG = encoded(picture(1), "PNG")


def write_tar(path: Path, **content: bytes) -> str:
    """`content` maps "key__suffix" to bytes."""
    with tarfile.open(path, "w") as tar:
        for name, data in content.items():
            add_to_tar(tar, name.replace("__", "."), data)
    return str(path)


def reasons(source: WebDatasetImages) -> dict[str, str | None]:
    """Id → why it is refused; None for a picture."""
    seen: dict[str, str | None] = {}
    for record in source.records():
        try:
            record.load()
            seen[record.id] = None
        except UnreadableImageError as error:
            seen[record.id] = error.reason
    return seen


def test_labels_come_from_cls_or_json(tmp_path: Path) -> None:
    shard = write_tar(
        tmp_path / "a.tar",
        a__png=PNG,
        a__cls=b"2\n",
        b__png=PNG,
        b__json=json.dumps({"label": 1, "id": 8}).encode(),
        c__png=PNG,
        c__cls=b"heron",
        d__png=PNG,
        e__png=PNG,
        e__cls=b"-1",
    )
    names = ["crane", "heron", "crane"]
    source = WebDatasetImages(shard, class_names=names)
    assert [record.label for record in source.records()] == [2, 1, 1, None, None]
    chosen = WebDatasetImages(shard, label_key="id")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [record.label for record in chosen.records()] == [2, 8, None, None, None]


@pytest.mark.parametrize("bad", [b"crane", b"7", b"what", b"\xff", b""])
def test_a_label_that_means_no_class_is_left_out_with_a_warning(bad: bytes, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", a__png=PNG, a__cls=bad)
    source = WebDatasetImages(shard, class_names=["crane", "heron", "crane"])
    with pytest.warns(UserWarning, match="count as unlabelled"):
        assert [record.label for record in source.records()] == [None]


def test_the_warning_of_labels_is_given_once(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", a__png=PNG, a__cls=b"x", b__png=PNG, b__cls=b"y")
    source = WebDatasetImages(shard)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(2):
            for record in source.records():
                record.load()  # installs a filter of warnings, if there is none
    assert sum("count as unlabelled" in str(warning.message) for warning in shown) == 1


def test_samples_without_an_image_and_with_several(tmp_path: Path) -> None:
    shard = write_tar(
        tmp_path / "a.tar", a__txt=b"no picture", b__bad__png=b"junk", b__jpg=PNG, c__cls=b"1"
    )
    assert reasons(WebDatasetImages(shard)) == {
        "a.tar/a": "no image in this sample: it has txt",
        "a.tar/b": "not an image of a known format",
        "a.tar/c": "no image in this sample: it has cls",
    }
    assert reasons(WebDatasetImages(shard, image_key="jpg"))["a.tar/b"] is None


def test_a_shard_that_breaks_off_gives_what_is_before_the_break(tmp_path: Path) -> None:
    pattern = sources.write_shards(tmp_path)
    damaged = tmp_path / "part-1.tar"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2 + 700])
    seen = reasons(WebDatasetImages(pattern))
    readable = [id for id, reason in seen.items() if reason is None]
    assert readable[:8] == [f"part-0.tar/{number:03d}" for number in range(8)]
    assert readable[-7:] == [f"part-2.tar/{number:03d}" for number in range(16, N_IMAGES)]
    assert 1 <= len(readable) - 15 < 8
    assert seen["part-1.tar"] is not None
    assert seen["part-1.tar"].startswith("missing or damaged shard: ")
    assert seen == reasons(WebDatasetImages(pattern))


@pytest.mark.parametrize("break_it", [Path.unlink, lambda path: path.write_bytes(b"no tar" * 999)])
def test_a_shard_that_is_missing_or_no_tar_is_listed(
    break_it: Callable[[Path], object], tmp_path: Path
) -> None:
    pattern = sources.write_shards(tmp_path)
    break_it(tmp_path / "part-1.tar")
    seen = reasons(WebDatasetImages(pattern))
    assert [id for id, reason in seen.items() if reason is not None] == ["part-1.tar"]
    assert len(seen) == N_IMAGES - 8 + 1


def test_shards_by_braces_by_star_and_by_list(tmp_path: Path) -> None:
    braces = sources.write_shards(tmp_path)
    star = str(tmp_path / "part-*.tar")
    listed = [str(tmp_path / f"part-{n}.tar") for n in range(3)]
    for shards in (braces, star, listed):
        assert WebDatasetImages(shards).shards == listed
    with pytest.raises(ValueError, match="no shards match"):
        WebDatasetImages(str(tmp_path / "other-*.tar"))


def test_ids_of_shards_with_one_name_stay_apart(tmp_path: Path) -> None:
    first = tmp_path / "x"
    second = tmp_path / "y"
    for folder in (first, second):
        folder.mkdir()
        write_tar(folder / "0.tar", a__png=PNG)
    source = WebDatasetImages([str(first / "0.tar"), str(second / "0.tar")])
    assert len({record.id for record in source.records()}) == 2


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(ImportError, match=r"pip install 'vit-sae-plugin\[webdataset\]'"):
        WebDatasetImages("x.tar")
