"""Batches: the same for any number of workers, from any start, whatever the images are."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import preprocessing, sources
from tests.datasets.odd_images import encoded, write_odd_folder
from tests.datasets.sources import EVERY_SOURCE, N_IMAGES, SAME_IMAGES, number_in, picture
from vit_sae_plugin.datasets import (
    ArrayImages,
    FolderImages,
    ImageBatch,
    ImageLoader,
    ImageRecord,
    ImageSource,
    NoReadableImagesError,
    WebDatasetImages,
    WorkerDiedError,
)
from vit_sae_plugin.datasets.batch_plan import BatchPlan, shuffled_stream
from vit_sae_plugin.datasets.worker_processes import start_workers

Make = Callable[[Path], ImageSource]


def load(source: ImageSource, **options: Any) -> list[ImageBatch]:
    options = {"batch_size_images": 5, "n_epochs": 2, "seed": 3, **options}
    return list(ImageLoader(source, preprocessing.small, **options))


def assert_same(some: list[ImageBatch], others: list[ImageBatch]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.label, other.label)
        assert (one.ids, one.batch_number) == (other.ids, other.batch_number)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("make", EVERY_SOURCE.values(), ids=EVERY_SOURCE)
def test_workers_change_nothing(make: Make, shuffle: bool, tmp_path: Path) -> None:
    source = make(tmp_path)
    options = {"shuffle": shuffle, "shuffle_buffer_images": 7}
    alone = load(source, n_workers=0, **options)
    assert len(alone) == 10  # two epochs of 5, 5, 5, 5, 3
    assert_same(load(source, n_workers=2, **options), alone)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("make", EVERY_SOURCE.values(), ids=EVERY_SOURCE)
def test_a_start_anywhere_continues_the_uninterrupted_stream(
    make: Make, shuffle: bool, tmp_path: Path
) -> None:
    source = make(tmp_path)
    options = {"shuffle": shuffle, "shuffle_buffer_images": 7, "n_epochs": 3}
    whole = load(source, **options)
    assert [batch.batch_number for batch in whole] == list(range(15))
    for start in (1, 4, 5, 7, 10, 14, 15):
        assert_same(load(source, start_batch=start, **options), whole[start:])
    assert_same(load(source, start_batch=6, n_workers=2, **options), whole[6:])


@pytest.mark.parametrize("make", EVERY_SOURCE.values(), ids=EVERY_SOURCE)
def test_each_epoch_has_each_image_once_in_an_order_of_its_own(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path)
    batches = load(source, shuffle=True, shuffle_buffer_images=10, n_epochs=3)
    orders = [torch.cat([b.index for b in batches[i : i + 5]]).tolist() for i in (0, 5, 10)]
    for order in orders:
        assert sorted(order) == list(range(N_IMAGES))
    assert len({tuple(order) for order in orders}) == 3
    other_seed = load(source, shuffle=True, shuffle_buffer_images=10, n_epochs=1, seed=4)
    assert torch.cat([b.index for b in other_seed]).tolist() not in orders


@pytest.mark.parametrize("make", SAME_IMAGES.values(), ids=SAME_IMAGES)
def test_pixels_labels_and_indices_belong_together(make: Make, tmp_path: Path) -> None:
    for batch in load(make(tmp_path), shuffle=True, n_workers=1, n_epochs=1):
        assert batch.pixels.dtype == torch.float32
        assert (batch.index.dtype, batch.label.dtype) == (torch.int64, torch.int64)
        assert batch.pixels.shape == (len(batch.ids), 3, 4, 4)
        for pixels, index, label in zip(batch.pixels, batch.index, batch.label, strict=True):
            assert number_in(pixels.numpy()) == index
            assert sources.label_of(int(index)) == label


def test_no_label_is_minus_one() -> None:
    batch = load(ArrayImages(sources.arrays()[:3]), n_epochs=1)[0]
    assert batch.label.tolist() == [-1, -1, -1]


def test_endless_epochs_go_on() -> None:
    loader = ImageLoader(
        ArrayImages(sources.arrays()[:4]),
        preprocessing.small,
        batch_size_images=3,
        n_epochs=None,
        start_batch=5001,
    )
    numbers = [batch.batch_number for batch, _ in zip(loader, range(3), strict=False)]
    assert numbers == [5001, 5002, 5003]
    assert loader.n_batches is None


def test_leaving_early_ends_the_workers(tmp_path: Path) -> None:
    for source in (ArrayImages(sources.arrays()), sources.make_shards(tmp_path)):
        loader = ImageLoader(
            source, preprocessing.small, batch_size_images=2, n_workers=2, n_epochs=None
        )
        for batch in loader:
            if batch.batch_number == 3:
                break
        assert multiprocessing.active_children() == []


@pytest.mark.parametrize("n_workers", [0, 2])
def test_bad_images_are_dropped_counted_and_listed(n_workers: int, tmp_path: Path) -> None:
    expected = write_odd_folder(tmp_path)
    loader = ImageLoader(
        FolderImages(tmp_path),
        preprocessing.small,
        batch_size_images=3,
        n_workers=n_workers,
        n_epochs=2,
    )
    batches = list(loader)
    used = [id for batch in batches for id in batch.ids]
    assert sorted(set(used)) == sorted(id for id, e in expected.items() if e.refusal is None)
    assert len(used) == 2 * len(set(used))
    frame = loader.skipped.to_frame()
    reasons = frame["reason"].str.partition(": ")[0]
    assert dict(zip(frame["id"], reasons, strict=True)) == {
        id: e.refusal for id, e in expected.items() if e.refusal is not None
    }
    n_batches_an_epoch = -(-len(expected) // 3)
    assert batches[-1].batch_number < 2 * n_batches_an_epoch
    assert all(len(batch.ids) > 0 for batch in batches)


def test_batches_count_on_where_a_whole_batch_is_unreadable() -> None:
    images = ArrayImages([picture(number) for number in range(6)])
    images._images[2:4] = [np.zeros((0, 3), np.uint8)] * 2
    batches = load(images, batch_size_images=2, n_epochs=1)
    assert [batch.batch_number for batch in batches] == [0, 2]
    assert_same(load(images, batch_size_images=2, n_epochs=1, start_batch=1), batches[1:])


@pytest.mark.parametrize("n_workers", [0, 1])
def test_preprocessing_that_fails_on_one_image_skips_it(n_workers: int) -> None:
    from PIL import Image

    blue = Image.new("RGB", (9, 8), (0, 0, 255))
    loader = ImageLoader(
        ArrayImages([picture(0), blue, picture(2)]),
        preprocessing.small_unless_blue,
        batch_size_images=3,
        n_workers=n_workers,
    )
    assert [batch.index.tolist() for batch in loader] == [[0, 2]]
    assert loader.skipped.to_frame()["reason"].tolist() == [
        "preprocessing failed: ZeroDivisionError: blue has no warmth (9 x 8)"
    ]


@pytest.mark.parametrize("n_workers", [0, 1])
@pytest.mark.parametrize(
    ("preprocess", "error", "message"),
    [
        (preprocessing.grey, ValueError, r"\[1, 4, 4\] for '0'; want a float tensor"),
        (preprocessing.whole_numbers, TypeError, r"torch\.uint8 for '0'"),
        (preprocessing.not_a_tensor, TypeError, "returned Image for '0'"),
        (preprocessing.own_size, ValueError, r"\[3, 5, 7\] for '1' but \[3, 5, 6\]"),
    ],
)
def test_preprocessing_that_is_wrong_ends_with_one_clear_error(
    n_workers: int, preprocess: Callable, error: type[Exception], message: str
) -> None:
    images = ArrayImages([np.zeros((5, 6 + number, 3), np.uint8) for number in range(2)])
    for batch_size in (1, 2):
        loader = ImageLoader(images, preprocess, batch_size_images=batch_size, n_workers=n_workers)
        with pytest.raises(error, match=message):
            list(loader)
        assert multiprocessing.active_children() == []  # while the error is still held


@pytest.mark.parametrize(
    ("start_method", "dies"),
    [
        (None, preprocessing.kills_its_process),
        (None, preprocessing.killed_as_it_asks_whether_to_end),
        ("spawn", preprocessing.killed_as_it_asks_whether_to_end),
    ],
)
def test_a_killed_worker_is_one_clear_error(start_method, dies, monkeypatch) -> None:
    started = functools.partial(multiprocessing.get_context, start_method)
    monkeypatch.setattr(multiprocessing, "get_context", started)
    loader = ImageLoader(ArrayImages(sources.arrays()), dies, batch_size_images=2, n_workers=1)
    with pytest.raises(WorkerDiedError, match=r"decodes arrays died.*fewer n_workers"):
        list(loader)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_comes_after_the_workers_are_started(number) -> None:
    class Stopped(BaseException):
        pass

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    class Loader:
        is_whole = False

        def __iter__(self) -> Iterator[None]:
            signal.raise_signal(number)
            self.is_whole = True
            return iter([])

    loader, before = Loader(), signal.signal(number, stop)
    try:
        with pytest.raises(Stopped):
            start_workers(loader)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert loader.is_whole


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_sigterm_ends_a_worker_that_has_just_been_forked() -> None:
    class Loader:
        def __iter__(self) -> Iterator[int]:
            child = os.fork()
            if child == 0:
                signal.raise_signal(signal.SIGTERM)
                os._exit(0)
            return iter([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])])

    assert next(start_workers(Loader())[0]) == 1


def test_a_death_disturbs_nothing_until_the_next_batch_is_waited_for() -> None:
    images = ArrayImages(sources.arrays())
    batches = iter(ImageLoader(images, preprocessing.small, batch_size_images=1, n_workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.5)  # here torch would raise what it heard of
    with pytest.raises(WorkerDiedError, match=r"decodes arrays died"):
        next(batches)


def test_what_a_dying_worker_had_sent_is_lost_with_a_clear_error() -> None:
    pictures = [np.full((5, 6, 3), value, np.uint8) for value in (9, 9, 0)]
    preprocess = preprocessing.small_until_it_dies_slowly
    loader = ImageLoader(ArrayImages(pictures), preprocess, batch_size_images=1, n_workers=1)
    batches = iter(loader)
    assert next(batches).batch_number == 0
    time.sleep(0.7)  # the second is on its way; meanwhile its sender begins to die
    with pytest.raises(WorkerDiedError, match=r"decodes arrays died: .*worker \(pid"):
        next(batches)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("n_epochs", [1, None])
def test_a_source_with_no_readable_image(
    n_workers: int, n_epochs: int | None, tmp_path: Path
) -> None:
    for number in range(7):
        (tmp_path / f"{number}.jpg").write_bytes(b"" if number < 2 else b"just text, no image")
    loader = ImageLoader(
        FolderImages(tmp_path, name="holiday"),
        preprocessing.small,
        batch_size_images=2,
        n_workers=n_workers,
        n_epochs=n_epochs,
    )
    with pytest.raises(NoReadableImagesError) as caught:
        list(loader)
    message = str(caught.value)
    assert "none of the 7 images tried in holiday can be used" in message
    assert "(5 not an image of a known format, 2 empty file)" in message
    assert "'0.jpg': empty file" in message


def test_an_empty_stream_is_an_error_however_often_it_is_repeated(tmp_path: Path) -> None:
    import tarfile

    tarfile.open(tmp_path / "0.tar", "w").close()
    source = WebDatasetImages(str(tmp_path / "0.tar"))
    for n_epochs in (1, None):
        for start_batch in (0, 3):
            with pytest.raises(NoReadableImagesError, match="0 images; want 1 or more"):
                load(source, n_epochs=n_epochs, start_batch=start_batch)


def test_half_an_epoch_without_readable_images_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(0), "PNG"))
    (tmp_path / "b.png").write_bytes(b"")
    source = FolderImages(tmp_path)
    assert load(source, batch_size_images=1, n_epochs=1, start_batch=1) == []
    later = load(source, batch_size_images=1, n_epochs=2, start_batch=1)
    assert [batch.batch_number for batch in later] == [2]


@pytest.mark.parametrize("n_workers", [0, 1])
def test_the_global_random_numbers_are_left_alone(n_workers: int) -> None:
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    load(ArrayImages(sources.arrays()), shuffle=True, n_workers=n_workers)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size_images": 0},
        {"n_workers": -1},
        {"n_epochs": 0},
        {"start_batch": -1},
        {"seed": -1},
        {"shuffle_buffer_images": 0},
    ],
)
def test_impossible_settings_are_named(wrong: dict[str, int]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        load(ArrayImages(sources.arrays()), **wrong)


class Numbers(ImageSource):
    """A stream, or a map-style source, of records without content."""

    name = "numbers"

    def __init__(self, n: int, is_streaming: bool) -> None:
        self.n = n
        self.is_streaming = is_streaming
        self.n_images = None if is_streaming else n

    def fingerprint(self) -> str:
        return str(self.n)

    def record(self, index: int) -> ImageRecord:
        return ImageRecord(index, str(index), None, None)

    def records(self, start: int = 0) -> Iterator[ImageRecord]:
        return (self.record(index) for index in range(start, self.n))


@settings(deadline=None, max_examples=150)
@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    n_epochs=st.integers(1, 4),
    start=st.integers(0, 60),
    shuffle=st.booleans(),
    is_streaming=st.booleans(),
    buffer_size=st.integers(1, 50),
)
def test_any_plan_can_be_entered_anywhere(
    n: int,
    batch_size: int,
    n_epochs: int,
    start: int,
    shuffle: bool,
    is_streaming: bool,
    buffer_size: int,
) -> None:
    def tasks(start_batch: int) -> list[tuple[int, bool, list[Any]]]:
        plan = BatchPlan(
            Numbers(n, is_streaming),
            batch_size_images=batch_size,
            shuffle=shuffle,
            seed=1,
            n_epochs=n_epochs,
            start_batch=start_batch,
            shuffle_buffer_images=buffer_size,
        )
        found = [
            (t.batch_number, t.starts_epoch, [getattr(i, "index", i) for i in t.images])
            for t in plan
        ]
        assert plan.n_batches in (None, len(found))
        return found

    whole = tasks(0)
    assert [number for number, _, _ in whole] == list(range(-(-n // batch_size) * n_epochs))
    assert sum(starts for _, starts, _ in whole) == n_epochs
    assert tasks(start) == whole[start:]
    indices = [index for _, _, images in whole for index in images]
    for epoch in range(n_epochs):
        assert sorted(indices[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_a_stream_is_shuffled_far_and_read_only_as_far_as_needed() -> None:
    seen = []

    def stream() -> Iterator[ImageRecord]:
        for record in Numbers(10_000, True).records():
            seen.append(record.index)
            yield replace(record, label=record.index // 1000)

    shuffled = shuffled_stream(stream(), 500, np.random.default_rng(0))
    first = [next(shuffled).index for _ in range(200)]
    assert len(seen) == 500 + 200
    assert max(first) > 400
    assert first != sorted(first)


def test_a_stream_is_read_once_for_all_workers(tmp_path: Path) -> None:
    source = sources.make_shards(tmp_path)
    n_read = 0
    records = source.records

    def counting(start: int = 0) -> Iterator[ImageRecord]:
        nonlocal n_read
        for record in records(start):
            n_read += 1
            yield record

    source.records = counting  # type: ignore[method-assign]
    load(source, n_workers=2, n_epochs=1)
    assert n_read == N_IMAGES
