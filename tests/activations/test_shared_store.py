"""A store shared by several processes, here threads: together they give what one gives alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny_models import tiny_open_clip
from vit_sae_plugin.activations import ViTActivationsStore
from vit_sae_plugin.datasets import ArrayImages, NoReadableImagesError
from vit_sae_plugin.hooked_vit import HookedViT

HOOK = "blocks.0.hook_resid_post"
N_TOKENS = 17


class _Exchange:
    """Passes texts around between threads."""

    def __init__(self, n_ranks: int) -> None:
        self.texts = [""] * n_ranks
        self.barrier = threading.Barrier(n_ranks, timeout=60)

    def gather_as(self, rank: int):
        def gather(text: str) -> list[str]:
            self.texts[rank] = text
            self.barrier.wait()
            everyones = list(self.texts)
            self.barrier.wait()
            return everyones

        return gather


class _ImageNumbers(HookedViT):
    """Gives each row its image's number and its token's."""

    def forward(self, pixels, stop_at_layer=None):  # type: ignore[override]
        acts = torch.zeros(len(pixels), N_TOKENS, self.cfg.d_model)
        acts[..., 0] = pixels[:, 0, 0, 0, None]
        acts[..., 1] = torch.arange(N_TOKENS)
        return self.hook_dict[HOOK](acts)


class _Images(ArrayImages):
    """Numbered images, of which some can't be read; notes which were asked for."""

    def __init__(self, n_images: int, unreadable: range, streams: bool) -> None:
        images = np.zeros((n_images, 32, 32, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = np.arange(n_images)
        super().__init__(images)
        self.unreadable = unreadable
        self.is_streaming = streams
        self.asked: list[int] = []

    def record(self, index):
        self.asked.append(index)
        record = super().record(index)
        if index in self.unreadable:
            return type(record)(index, str(index), None, b"no image")
        return record

    def records(self, start=0):
        return (self.record(index) for index in range(start, self.n_images))


def _to_number(image) -> Tensor:
    return torch.full((3, 32, 32), float(np.array(image)[0, 0, 0]))


def _store(n_images=11, unreadable=range(0), streams=False, **changes) -> ViTActivationsStore:
    settings = {
        "hook_name": HOOK,
        "train_batch_size_tokens": 30,
        "store_batch_size_images": 2,
        "n_batches_in_buffer": 4,
        "seed": 5,
        "with_coordinates": True,
    }
    model = _ImageNumbers.from_module(tiny_open_clip(), preprocess=_to_number)
    images = _Images(n_images, unreadable, streams)
    return ViTActivationsStore(model, images, **{**settings, **changes})


def _shared(n_ranks: int, n_batches: int, state=None, **settings) -> tuple[list, list]:
    """The stores of so many threads, and what each gave."""
    exchange = _Exchange(n_ranks)
    stores = [_store(**settings) for _ in range(n_ranks)]

    def serve(rank: int) -> list[Tensor]:
        try:
            stores[rank].take_share(rank, n_ranks, exchange.gather_as(rank))
            if state is not None:
                stores[rank].load_state_dict(state)
            return [
                torch.cat([rows[:, :2], stores[rank].coordinates[:, :1]], dim=1)
                for rows in islice(stores[rank], n_batches)
            ]
        except NoReadableImagesError:
            raise  # in all of them
        except BaseException:
            exchange.barrier.abort()
            raise

    with ThreadPoolExecutor(n_ranks) as threads:
        return stores, list(threads.map(serve, range(n_ranks)))


def _as_one(shares: list[list[Tensor]]) -> list[list[list[float]]]:
    """Each batch of several ranks: its rows, sorted."""
    return [sorted(torch.cat(parts).tolist()) for parts in zip(*shares, strict=True)]


def _alone(n_batches: int, **settings) -> list[list[list[float]]]:
    return _as_one(_shared(1, n_batches, **settings)[1])


HOLES = {"unreadable": range(3, 8)}


@pytest.mark.parametrize("settings", [{}, HOLES, {"streams": True, **HOLES}], ids=str)
def test_together_they_give_the_batches_of_one(settings) -> None:
    # 25 batches are 6 buffers and over 4 epochs; image batches, buffers and epochs end apart
    undivided = _store(**settings)
    expected = [
        sorted(torch.cat([rows[:, :2], undivided.coordinates[:, :1]], dim=1).tolist())
        for rows in islice(undivided, 25)
    ]
    for n_ranks in (1, 2, 3):
        stores, shares = _shared(n_ranks, 25, **settings)
        assert _as_one(shares) == expected
        assert all(store.global_batch_rows == 30 for store in stores)
        assert len({str(store.state_dict()) for store in stores}) == 1
        # each knows of every image that any of them skipped
        known = [sorted(store.skipped.to_frame()["index"]) for store in stores]
        assert known == [sorted(undivided.skipped.to_frame()["index"])] * n_ranks


def test_rows_of_a_share_are_in_the_batchs_order() -> None:
    undivided = _store()
    rows = [tuple(row) for row in next(undivided)[:, :2].tolist()]
    _, shares = _shared(2, 1)
    for (share,) in shares:
        places = [rows.index(tuple(row)) for row in share[:, :2].tolist()]
        assert places == sorted(places)
        assert 0 < len(places) < 30


def test_an_image_is_decoded_by_one_process_only() -> None:
    stores, _ = _shared(2, 4)  # one buffer: 120 rows are 7.06 images, 4 image batches of 2
    asked = [store.images.asked for store in stores]
    assert [len(images) for images in asked] == [4, 4]
    assert len(set(asked[0]) | set(asked[1])) == 8


@pytest.mark.parametrize("n_served", [0, 3, 4, 9])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 3), (1, 2)])
def test_another_number_of_processes_goes_on(before, after, n_served) -> None:
    expected = _alone(16, **HOLES)
    stores, _ = _shared(before, n_served, **HOLES)
    _, shares = _shared(after, 16 - n_served, stores[0].state_dict(), **HOLES)
    assert _as_one(shares) == expected[n_served:]


def test_a_share_may_be_empty() -> None:
    # one image fills the buffer: only the process that runs it has rows
    _, shares = _shared(
        2, 3, n_images=1, train_batch_size_tokens=5, n_batches_in_buffer=3, token_kind="patches"
    )
    assert [len(rows) for rows in shares[1]] == [0, 0, 0]
    assert [len(rows) for rows in shares[0]] == [5, 5, 5]


@pytest.mark.parametrize("streams", [False, True])
def test_all_end_where_no_image_can_be_used(streams) -> None:
    with pytest.raises(NoReadableImagesError, match="no image of arrays can be used"):
        _shared(2, 1, unreadable=range(11), streams=streams)
