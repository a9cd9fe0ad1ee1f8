"""Any number of writers, killed at any time: every shard is written once, and nothing half."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.activations.cache.small_cache import (
    HOOKS,
    all_rows,
    images_of,
    small_model,
)
from vit_sae_plugin import file_lock
from vit_sae_plugin.activations.cache import (
    ActivationCache,
    CacheMismatchError,
    CachePlan,
    ShardInUseError,
    UnfinishedCacheError,
    begin_cache,
    plan_cache,
    repair_cache,
    shard_buffer,
    shard_claims,
    verify_cache,
    write_cache,
    write_shard,
)
from vit_sae_plugin.activations.cache.shard_buffer import ShardBuffer
from vit_sae_plugin.activations.cache.shard_claims import ShardClaims
from vit_sae_plugin.activations.cache.shard_files import finished_numbers, shard_folder
from vit_sae_plugin.datasets import FolderImages, open_images

SETTINGS = {
    "hook_names": HOOKS,
    "images_per_shard": 2,
    "batch_size_images": 2,
    "progress": False,
}
N_IMAGES = 24


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> ActivationCache:
    folder = tmp_path_factory.mktemp("whole") / "c"
    return write_cache(folder, model, images_of(N_IMAGES), **SETTINGS)


def _files(cache: ActivationCache) -> dict:
    return {number: entry.files for number, entry in cache.entries.items()}


def _written(folder: Path) -> dict[int, int]:
    """When each shard was moved into its place."""
    return {n: shard_folder(folder, n).stat().st_mtime_ns for n in finished_numbers(folder)}


def _fork(work) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


@pytest.fixture
def saved(monkeypatch):
    """Numbers of the shards saved by this process, in order."""
    numbers: list[int] = []
    real = ShardBuffer.save

    def noted(buffer, *args):
        numbers.append(buffer.shard.number)
        return real(buffer, *args)

    monkeypatch.setattr(ShardBuffer, "save", noted)
    return numbers


def test_killed_in_the_middle_of_a_shard_only_that_one_is_written_again(
    model, whole, tmp_path, saved, monkeypatch
) -> None:
    folder = tmp_path / "c"

    def dies_in_the_fifth() -> None:
        real, n_files = shard_buffer._write, []

        def write(path, values):
            n_files.append(path)
            if len(n_files) == 4 * 3 + 2:  # three files a shard: coordinates and two hooks
                path.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return real(path, values)

        shard_buffer._write = write
        write_cache(folder, model, images_of(N_IMAGES), **SETTINGS)

    os.waitpid(_fork(dies_in_the_fifth), 0)
    before = _written(folder)
    assert len(before) == 4
    assert list((folder / "shards").glob(".unfinished-*"))
    partial = ActivationCache(folder, partial=True)
    assert partial.n_images == 8  # what is finished can be used
    with pytest.raises(UnfinishedCacheError, match="4 of 12 shards"):
        ActivationCache(folder)
    cache = write_cache(folder, model, images_of(N_IMAGES), **SETTINGS)
    assert saved == list(range(4, 12))
    assert {n: t for n, t in _written(folder).items() if n < 4} == before
    assert not list((folder / "shards").glob(".unfinished-*"))
    assert _files(cache) == _files(whole)
    assert cache.fingerprint() == ActivationCache(folder).fingerprint()


@pytest.mark.parametrize("locks", ["system's locks", "no locks"])
def test_several_writers_share_the_shards_and_take_over_from_a_killed_one(
    model, whole, tmp_path, saved, monkeypatch, locks
) -> None:
    folder = tmp_path / "c"
    if locks == "no locks":
        monkeypatch.setattr(file_lock, "_fcntl", None)
    monkeypatch.setattr(sys.modules[write_cache.__module__], "_POLL_SECONDS", 0.02)
    log = tmp_path / "log"

    def other(slow: bool) -> None:
        real = ShardBuffer.save

        def noted(buffer, *args):
            if slow:  # holds a claim for ever
                (tmp_path / "stuck").touch()
                time.sleep(60)
            with log.open("a") as file:
                file.write(f"{buffer.shard.number}\n")
            return real(buffer, *args)

        ShardBuffer.save = noted
        write_cache(folder, model, images_of(N_IMAGES), **SETTINGS)

    stuck = _fork(lambda: other(slow=True))
    while not (tmp_path / "stuck").exists():
        time.sleep(0.01)
    helper = _fork(lambda: other(slow=False))
    killer = threading.Timer(1.0, os.kill, (stuck, signal.SIGKILL))
    killer.start()
    threading.Timer(1.1, os.waitpid, (stuck, 0)).start()
    cache = write_cache(folder, model, images_of(N_IMAGES), **SETTINGS)
    os.waitpid(helper, 0)
    theirs = [int(line) for line in log.read_text().split()] if log.exists() else []
    assert sorted(saved + theirs) == list(range(12))  # each once
    assert _files(cache) == _files(whole)
    assert verify_cache(folder) == {}
    assert list((folder / "claims").iterdir()) == []


def test_a_claimed_shard_is_not_written_by_another(model, tmp_path) -> None:
    settings = {name: value for name, value in SETTINGS.items() if name != "progress"}
    plan = plan_cache(tmp_path / "c", model, images_of(4), **settings)
    claim = ShardClaims(plan.folder).take(1)
    assert claim is not None
    with pytest.raises(ShardInUseError, match=f"shard 1 .* by process {os.getpid()} on "):
        write_shard(plan, 1, model, images_of(4))
    claim.release()
    first = write_shard(plan, 1, model, images_of(4))
    assert write_shard(plan, 1, model, images_of(4)) == first


def without_locks(monkeypatch) -> list[float]:
    """The time of this machine's claims, which may be set, and is the only clock that they have.

    Only theirs: a server in another thread would never wake if everybody's stood still.
    """
    now = [1000.0]
    monkeypatch.setattr(shard_claims, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(file_lock, "_fcntl", None)
    monkeypatch.setattr(
        file_lock, "time", SimpleNamespace(strftime=time.strftime, sleep=time.sleep)
    )
    return now


def test_without_locks_a_silent_writer_of_another_machine_is_passed_over(
    tmp_path, monkeypatch
) -> None:
    now = without_locks(monkeypatch)
    path = tmp_path / "claims" / "shard-000003.lock"
    path.parent.mkdir()
    holder = {"pid": 1, "host": "elsewhere", "since": "2031-01-01 00:00:00"}

    def beat(number: int) -> None:
        path.write_text(json.dumps({**holder, "beats": number}))

    claims = ShardClaims(tmp_path)
    for number in range(3):  # alive: its file changes
        beat(number)
        assert claims.take(3) is None
        now[0] += 50
    assert claims.take(3) is None
    now[0] += 20  # 70 s since it changed
    claim = claims.take(3)
    assert claim is not None
    assert json.loads(path.read_text())["pid"] == os.getpid()
    claim.release()
    assert not path.exists()


def test_a_writer_that_was_passed_over_leaves_the_other_alone(tmp_path, monkeypatch) -> None:
    now = without_locks(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        stopped = ShardClaims(tmp_path).take(3)
    claims = ShardClaims(tmp_path)
    assert claims.take(3) is None
    now[0] += 70
    claim = claims.take(3)
    assert claim is not None

    shards = tmp_path / "shards"
    for name in (".unfinished-000003-old", ".unfinished-000003-new", ".unfinished-000004-old"):
        (shards / name).mkdir(parents=True)
        (shards / name / "rows").touch()
        if name.endswith("old"):
            for path in (shards / name / "rows", shards / name):
                os.utime(path, (time.time() - 70,) * 2)
    stopped.delete_unfinished(shards)
    assert len(list(shards.iterdir())) == 3
    claim.delete_unfinished(shards)  # the stopped one may be awake, and writing "new"
    assert sorted(path.name[-10:] for path in shards.iterdir()) == ["000003-new", "000004-old"]
    before = (tmp_path / "claims" / "shard-000003.lock").read_text()
    stopped.release()
    assert (tmp_path / "claims" / "shard-000003.lock").read_text() == before
    claim.release()
    assert list((tmp_path / "claims").iterdir()) == []
    with ShardClaims(tmp_path).take(3) as alone:
        alone.delete_unfinished(shards)
    assert [path.name[-10:] for path in shards.iterdir()] == ["000004-old"]


def test_a_claim_without_locks_changes_while_it_is_held(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(file_lock, "_fcntl", None)
    monkeypatch.setattr(shard_claims, "_BEAT_SECONDS", 0.01)
    claim = ShardClaims(tmp_path).take(0)
    path = tmp_path / "claims" / "shard-000000.lock"
    beats = 0
    for _ in range(2000):
        time.sleep(0.01)
        beats = json.loads(path.read_text()).get("beats", 0)
        if beats >= 2:
            break
    assert beats >= 2
    claim.release()
    time.sleep(0.05)
    assert not path.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_names": HOOKS[:1]}, r"hooks is \['blocks.0.*'blocks.1.*'\] in the .* but \['bl"),
        ({"dtype": "bfloat16"}, "dtype is 'float32' in the cache, but 'bfloat16' now"),
        ({"token_kind": "patches"}, "token_kind is 'all' in the cache, but 'patches' now"),
        ({"seed": 3}, "seed is 0 in the cache, but 3 now"),
        ({"images_per_shard": 4}, "images_per_shard is 2 in the cache, but 4 now"),
        ({"batch_size_images": 1}, "batch_size_images is 2 in the cache, but 1 now"),
        ({"autocast_model": True}, "autocast_model is False in the cache, but True now"),
        ({"model": small_model(1)}, "model_sha256 is [0-9a-f]{8} in the cache, but [0-9a-f]{8}"),
        ({"images": images_of(24, seed=1)}, r"is of arrays \[.*\(24 images there, 24 now\)"),
    ],
)
def test_another_run_into_the_same_folder_is_refused(whole, model, changes, message) -> None:
    before = _written(whole.path)
    settings = {"model": model, "images": images_of(N_IMAGES), **SETTINGS, **changes}
    with pytest.raises(CacheMismatchError, match=message):
        write_cache(whole.path, **settings)
    assert _written(whole.path) == before
    settings = {"model": model, "images": images_of(N_IMAGES), "hook_names": HOOKS}
    assert write_cache(whole.path, **settings, progress=False).n_images == N_IMAGES


def _photos(folder: Path, names: str, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in zip(names, images_of(len(names), seed).records(), strict=True):
        record.load().save(folder / f"{name}.png")
    return folder


def test_images_are_added_later_and_what_was_there_is_not_written_again(
    model, tmp_path, saved
) -> None:
    photos = _photos(tmp_path / "photos", "bdfhj", seed=1)
    cache = write_cache(tmp_path / "c", model, str(photos), **SETTINGS)
    first = dict(zip(cache.image_ids, all_rows(cache, HOOKS[0]), strict=True))
    _photos(photos, "acz", seed=2)
    with pytest.raises(
        CacheMismatchError, match=r"\(5 images there, 8 now\); want the same images, or --add"
    ):
        write_cache(tmp_path / "c", model, str(photos), **SETTINGS)
    del saved[:]
    cache = write_cache(tmp_path / "c", model, str(photos), **SETTINGS, add=True)
    assert saved == [3, 4]
    assert cache.image_ids == [f"{name}.png" for name in "bdfhjacz"]
    rows = dict(zip(cache.image_ids, all_rows(cache, HOOKS[0]), strict=True))
    for id, row in first.items():
        assert (rows[id] == row).all()
    alone = write_cache(tmp_path / "alone", model, str(photos), **SETTINGS)
    for id, row in zip(alone.image_ids, all_rows(alone, HOOKS[0]), strict=True):
        np.testing.assert_allclose(rows[id], row, rtol=1e-4, atol=1e-5)
    # a shard of the folder as it was, repaired from the folder as it is
    before = cache.entries[1].files
    shutil.rmtree(shard_folder(cache.path, 1))
    assert list(repair_cache(cache.path, model=model)) == [1]
    assert ActivationCache(cache.path).entries[1].files == before
    # nothing new, a stranger with ids of its own, and one with ids that are there
    (photos / "z.png").unlink()
    with pytest.raises(CacheMismatchError, match="holds all 7 images of photos already"):
        write_cache(tmp_path / "c", model, str(photos), **SETTINGS, add=True)
    others = _photos(tmp_path / "others", "uvw", seed=3)
    cache = write_cache(tmp_path / "c", model, str(others), **SETTINGS, add=True)
    assert cache.image_ids[-3:] == ["u.png", "v.png", "w.png"]
    clash = _photos(tmp_path / "clash", "xa", seed=3)
    with pytest.raises(CacheMismatchError, match=r"1 of the 2 images of clash .* such as 'a.png'"):
        write_cache(tmp_path / "c", model, str(clash), **SETTINGS, add=True)


def test_images_that_another_adds_meanwhile_stay(model, tmp_path, monkeypatch) -> None:
    first, second, third = (
        str(_photos(tmp_path / names, names, seed=number))
        for number, names in enumerate(("ab", "cd", "ef"))
    )
    write_cache(tmp_path / "c", model, first, **SETTINGS)
    real = begin_cache._added_part

    def long_work(*args):
        monkeypatch.setattr(begin_cache, "_added_part", real)
        write_cache(tmp_path / "c", model, second, **SETTINGS, add=True)
        return real(*args)

    monkeypatch.setattr(begin_cache, "_LONGEST_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(begin_cache, "_added_part", long_work)
    cache = write_cache(tmp_path / "c", model, third, **SETTINGS, add=True)
    assert cache.image_ids == [f"{name}.png" for name in "abcdef"]
    assert [part.text for part in cache.plan.parts] == [first, second, third]


class Streamed(FolderImages):
    is_streaming = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.n_there, self.n_images = self.n_images, None

    def records(self, start=0):
        for index in range(start, self.n_there):
            yield FolderImages.record(self, index)


def test_a_stream_is_walked_by_one_writer_and_gone_on_with(model, tmp_path, saved) -> None:
    photos = _photos(tmp_path / "photos", "abcdefghi", seed=1)
    (photos / "c.png").write_bytes(b"no picture")
    folder = tmp_path / "c"

    class Cut(Streamed):
        def records(self, start=0):
            for record in super().records(start):
                if record.index == 5:
                    raise ConnectionError("the network is gone")
                yield record

    with pytest.raises(ConnectionError):
        write_cache(folder, model, Cut(photos), **SETTINGS)
    assert saved == [0, 1]
    with pytest.raises(UnfinishedCacheError, match=r"2 of [?] shards"):
        ActivationCache(folder)
    claim = ShardClaims(folder).take(2)
    with pytest.raises(ShardInUseError, match="a stream can be walked by one process only"):
        write_cache(folder, model, Streamed(photos), **SETTINGS)
    claim.release()
    cache = write_cache(folder, model, Streamed(photos), **SETTINGS)
    assert saved == [0, 1, 2, 3, 4]
    assert CachePlan.load(folder).n_images == 9
    assert cache.image_ids == [f"{name}.png" for name in "abdefghi"]
    assert cache.skipped.to_frame()["id"].tolist() == ["c.png"]
    again = write_cache(folder, model, Streamed(photos), **SETTINGS)
    assert saved == [0, 1, 2, 3, 4]
    assert again.fingerprint() == cache.fingerprint()
    straight = write_cache(tmp_path / "d", model, open_images(photos), **SETTINGS)
    assert straight.image_ids == cache.image_ids


def test_a_label_keeps_its_meaning_when_images_are_added(model, tmp_path) -> None:
    photos, folder = tmp_path / "photos", tmp_path / "c"
    for name in ("cat", "dog"):
        _photos(photos / name, "ab", seed=1)
    write_cache(folder, model, str(photos), **SETTINGS)
    _photos(photos / "emu", "a", seed=2)
    cache = write_cache(folder, model, str(photos), **SETTINGS, add=True)
    assert cache.class_names == ["cat", "dog", "emu"]
    assert cache.image_table["label"].tolist() == [0, 0, 1, 1, 2]
    _photos(photos / "cow", "a", seed=3)
    with pytest.raises(
        CacheMismatchError, match=r"label 1 is 'dog' in the cache .*, but 'cow' in p"
    ):
        write_cache(folder, model, str(photos), **SETTINGS, add=True)
