"""What goes wrong is one clear error, and what was finished stays usable."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import time
from itertools import islice
from pathlib import Path

import pytest

from tests.activations.cache.small_cache import (
    HOOKS,
    all_rows,
    images_of,
    small_cache,
    small_model,
    to_pixels,
)
from vit_sae_plugin.activations.cache import (
    ActivationCache,
    CacheMismatchError,
    CachePlan,
    CacheStore,
    CacheWriteError,
    DamagedCacheError,
    repair_cache,
    shard_buffer,
    verify_cache,
)
from vit_sae_plugin.activations.cache.room import in_words
from vit_sae_plugin.datasets import ArrayImages, NoReadableImagesError, WorkerDiedError
from vit_sae_plugin.datasets.image_decoding import DecodingLimits
from vit_sae_plugin.hooked_vit import HookedViT

SHARD = "shards/shard-000001"
ROWS = f"{HOOKS[0]}.rows.bin"


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def cache(model, tmp_path) -> ActivationCache:
    return small_cache(tmp_path / "c", model)


def _files(cache: ActivationCache) -> dict:
    return {number: entry.files for number, entry in cache.entries.items()}


def _flip(path: Path, at: int) -> None:
    contents = bytearray(path.read_bytes())
    contents[at] ^= 1
    path.write_bytes(contents)


DAMAGES = {
    "a flipped bit in the rows": (lambda s: _flip(s / ROWS, 4321), f"{ROWS} have changed"),
    "a flipped bit in the coordinates": (
        lambda s: _flip(s / "coordinates.bin", 0),
        "coordinates.bin have changed",
    ),
    "a flipped bit in the table": (
        lambda s: _flip(s / "images.parquet", 99),
        "images.parquet have changed",
    ),
    "a flipped bit in the entry": (lambda s: _flip(s / "shard.json", 60), "shard.json"),
    "a truncated file": (lambda s: os.truncate(s / ROWS, 100), "has 100 bytes where 8704 were"),
    "a longer file": (lambda s: os.truncate(s / ROWS, 8705), "has 8705 bytes where 8704 were"),
    "a file that is gone": (lambda s: (s / ROWS).unlink(), f"{ROWS} is missing"),
    "an entry that is gone": (lambda s: (s / "shard.json").unlink(), "is missing"),
    "a shard that is gone": (shutil.rmtree, "isn't there"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_found_and_only_that_shard_is_written_anew(
    model, cache, damage, monkeypatch
) -> None:
    before, rows = _files(cache), all_rows(cache, HOOKS[1])
    hurt, message = DAMAGES[damage]
    hurt(cache.path / SHARD)
    found = verify_cache(cache.path)
    assert list(found) == [1]
    assert message in found[1]
    times = {n: (cache.path / f"shards/shard-00000{n}").stat().st_mtime_ns for n in (0, 2)}
    assert repair_cache(cache.path, model=model, images=images_of(10)) == found
    assert verify_cache(cache.path) == {}
    assert times == {n: (cache.path / f"shards/shard-00000{n}").stat().st_mtime_ns for n in (0, 2)}
    whole = ActivationCache(cache.path)
    assert _files(whole) == before
    assert (all_rows(whole, HOOKS[1]) == rows).all()


def test_repair_with_other_weights_or_images_is_refused(model, cache) -> None:
    shutil.rmtree(cache.path / SHARD)
    with pytest.raises(CacheMismatchError, match=r"model_sha256 is [0-9a-f]{8} in the cache, but"):
        repair_cache(cache.path, model=small_model(1), images=images_of(10))
    with pytest.raises(CacheMismatchError, match=r"\(10 images there, 11 now\); want the same"):
        repair_cache(cache.path, model=model, images=images_of(11))
    with pytest.raises(ValueError, match="was made of arrays, an object that its manifest can't"):
        repair_cache(cache.path, model=model)


def test_a_full_disk_is_said_and_what_was_finished_can_be_used_and_gone_on_with(
    model, tmp_path, monkeypatch
) -> None:
    real, n_files = shard_buffer._write, []

    def full(path, values):
        n_files.append(path)
        if len(n_files) > 3 * 3:  # three files a shard: the fourth doesn't fit
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, values)

    with monkeypatch.context() as patch:
        patch.setattr(shard_buffer, "_write", full)
        message = r"shard 3 can't .*\(the disk is full\): the 3 shards that are finished stay; free"
        with pytest.raises(CacheWriteError, match=message):
            small_cache(tmp_path / "c", model, images_of(20))
    assert sorted(path.name for path in (tmp_path / "c" / "shards").iterdir()) == [
        f"shard-00000{n}"
        for n in range(3)  # nothing half, which would take room
    ]
    assert list((tmp_path / "c" / "claims").iterdir()) == []
    assert ActivationCache(tmp_path / "c", partial=True).n_images == 12
    assert small_cache(tmp_path / "c", model, images_of(20)).n_images == 20


def test_the_systems_own_limit_on_a_file_is_said_as_well(model, tmp_path) -> None:
    # as for a quota: the write fails in the midst of a file
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
        with pytest.raises(CacheWriteError, match=r"shard 0 .*\(the disk is full\): the 0 shards"):
            small_cache(tmp_path / "c", model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)
    assert small_cache(tmp_path / "c", model).n_images == 10


def test_a_disk_without_room_is_refused_before_anything_is_computed(
    model, tmp_path, monkeypatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        message = r"needs 46\.9 kB more, but its disk has 1\.0 kB free; want another folder, a 16"
        with pytest.raises(CacheWriteError, match=message):
            small_cache(tmp_path / "c", model)
    # smaller settings aren't refused as other ones
    assert small_cache(tmp_path / "c", model, dtype="bfloat16").n_images == 10
    assert [in_words(n) for n in (999, 1000, 5.25e9, 2e13)] == [
        "999 bytes",
        "1.0 kB",
        "5.2 GB",
        "20.0 TB",
    ]


def test_a_read_only_folder_is_one_clear_error(model, tmp_path, monkeypatch) -> None:
    # a folder's own mode doesn't stop root, so the system's answer is put in its place
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(CacheWriteError, match=r"can't be written to .* \(Read-only file sys"):
            small_cache(tmp_path / "c", model)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheWriteError, match=r"can't be written to .*; choose another folder"):
        small_cache(tmp_path / "file", model)
    cache = small_cache(tmp_path / "c", model)
    shutil.rmtree(cache.path / "claims")
    with monkeypatch.context() as patch:  # reading writes nothing
        patch.setattr(Path, "mkdir", refuse)
        assert all_rows(ActivationCache(cache.path), HOOKS[0]).shape == (10, 17, 32)
        assert verify_cache(cache.path) == {}


def _listing(folder: Path) -> dict:
    """Every file and folder: a name that came and went would change its folder's time."""
    paths = (folder, *folder.rglob("*"))
    return {path: (s.st_ino, s.st_size, s.st_mtime_ns) for path in paths if (s := path.stat())}


def test_reading_a_cache_writes_nothing(cache) -> None:
    shutil.rmtree(cache.path / "claims")
    before = _listing(cache.path)
    opened = ActivationCache(cache.path)
    store = CacheStore(opened, hook_name=HOOKS[0], train_batch_size_tokens=17)
    assert sum(len(batch) for batch in islice(store, 10)) == opened.n_rows  # an epoch
    store.close()
    assert verify_cache(cache.path) == {}
    assert len(opened.image_table) == 10
    assert _listing(cache.path) == before


class Deadly(ArrayImages):
    """The eighth image kills the process that decodes it."""

    is_deadly = True

    def record(self, index):
        if index == 7 and Deadly.is_deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().record(index)


def test_a_killed_worker_is_named_and_the_cache_can_be_gone_on_with(model, tmp_path) -> None:
    images = Deadly(images_of(10)._images)
    with pytest.raises(WorkerDiedError, match="died"):
        small_cache(tmp_path / "c", model, images, images_per_shard=2, n_workers=1)
    n_finished = len(ActivationCache(tmp_path / "c", partial=True).shards)
    assert 1 <= n_finished <= 3
    assert list((tmp_path / "c" / "claims").iterdir()) == []
    Deadly.is_deadly = False
    assert (
        small_cache(tmp_path / "c", model, images, images_per_shard=2, n_workers=1).n_images == 10
    )


def test_a_clock_that_jumps_changes_nothing(model, cache, tmp_path, monkeypatch) -> None:
    real, calls = time.time, []

    def jumping():
        calls.append(None)
        return real() + (1e8 if len(calls) % 2 else -1e8)

    monkeypatch.setattr(time, "time", jumping)
    again = small_cache(tmp_path / "d", model)
    assert _files(again) == _files(cache)
    assert small_cache(tmp_path / "d", model).fingerprint() == again.fingerprint()


def test_a_source_without_a_readable_image_is_one_clear_error(model, tmp_path) -> None:
    images = ArrayImages(images_of(10)._images, limits=DecodingLimits(max_pixels=2))
    with pytest.raises(NoReadableImagesError, match="none of the 10 images tried in arrays"):
        small_cache(tmp_path / "c", model, images)


def test_a_shard_that_vanished_while_it_is_used_leaves_the_others(model, cache) -> None:
    opened = ActivationCache(cache.path)
    rows = opened.rows(HOOKS[0], 1)
    shutil.rmtree(cache.path / SHARD)
    assert rows[0, 0] == rows[0, 0]  # what is mapped stays readable
    with pytest.raises(DamagedCacheError, match=r"shard 1 is damaged: .*--repair"):
        opened.rows(HOOKS[1], 1)
    assert opened.rows(HOOKS[1], 2).shape == (2 * 17, 32)
    with pytest.raises(ValueError, match=r"2 of 3 shards \(the first that is missing is 1\)"):
        ActivationCache(cache.path)
    assert ActivationCache(cache.path, partial=True).shards == [0, 2]


def test_what_is_no_cache_is_said(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no activation cache in .*: vit-sae cac"):
        CachePlan.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_names": []}, r"hook_names is \[\]; want one or more, each once"),
        ({"hook_names": [HOOKS[0]] * 2}, "want one or more, each once"),
        ({"hook_names": ["blocks.9.hook_resid_post"]}, "blocks.9.hook_resid_post"),
        ({"dtype": "float8"}, "dtype is 'float8'; want one of float32, bfloat16, float16, int8"),
        ({"images_per_shard": 3}, "images_per_shard is 3; want a multiple of batch_size_images, 2"),
        ({"batch_size_images": 0}, "batch_size_images is 0; want 1 or more"),
        ({"images_per_shard": 0}, "images_per_shard is 0; want 1 or more"),
        ({"seed": -1}, "seed is -1; want 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(model, tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        small_cache(tmp_path / "c", model, **changes)
    assert not (tmp_path / "c" / "cache.json").exists()


def test_no_activation_that_is_not_finite_gets_into_a_cache(model, tmp_path) -> None:
    def overflowing(image):
        return to_pixels(image) * 1e30

    wild = HookedViT.from_module(model.bare_model, preprocess=overflowing)
    with pytest.raises(ValueError, match=r"images '0' to '1': some activations are NaN or inf"):
        small_cache(tmp_path / "c", wild, images_of(4))
