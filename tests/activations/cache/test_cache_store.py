"""Training's rows from a cache: each once an epoch, resumable, shared without overlap."""

from __future__ import annotations

import os
import time
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.activations.cache.small_cache import (
    D_MODEL,
    HOOKS,
    N_TOKENS,
    all_rows,
    images_of,
    small_cache,
    small_model,
)
from vit_sae_plugin.activations.cache import (
    ActivationCache,
    CacheStore,
    DamagedCacheError,
    block_reader,
    read_order,
)
from vit_sae_plugin.activations.cache.read_order import ReadOrder

N_IMAGES = 23


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> ActivationCache:
    return small_cache(tmp_path_factory.mktemp("cache") / "c", small_model(), images_of(N_IMAGES))


_OPEN: list[CacheStore] = []


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    # 8 rows a block, so that a few hundred rows are many blocks
    monkeypatch.setattr(read_order, "_SMALLEST_BLOCK_BYTES", 8 * 4 * D_MODEL)
    yield
    while _OPEN:  # what a store reads ahead must not be counted by the next test
        _OPEN.pop().close()


def _store(cache: ActivationCache, **changes) -> CacheStore:
    settings = {"hook_name": HOOKS[0], "train_batch_size_tokens": 30, "n_batches_in_buffer": 3}
    _OPEN.append(CacheStore(cache, **{**settings, "seed": 5, "with_coordinates": True, **changes}))
    return _OPEN[-1]


def _sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    return rows[np.lexsort(rows.numpy().T)]


def _same_order(one: CacheStore, other: CacheStore, n_batches: int) -> bool:
    return all(torch.equal(next(one), next(other)) for _ in range(n_batches))


def test_an_epoch_serves_every_row_once_and_the_next_one_in_another_order(cache) -> None:
    n_rows = N_IMAGES * N_TOKENS  # 391 is 17 x 23, so that batches of 23 end with the epochs
    store = _store(cache, train_batch_size_tokens=23)
    epochs = [torch.cat(list(islice(store, 17))) for _ in range(3)]
    expected = _sorted_rows(all_rows(cache, HOOKS[0]).flatten(0, 1))
    for epoch in epochs:
        assert len(epoch) == n_rows
        assert torch.equal(_sorted_rows(epoch), expected)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_rows_come_with_their_own_coordinates(cache) -> None:
    store, expected = _store(cache), all_rows(cache, HOOKS[0])
    for batch in islice(store, 20):
        image, row, column = store.coordinates.T
        token = torch.where(row < 0, 0, 1 + 4 * row + column)
        assert torch.equal(batch, expected[image, token])


def test_the_seed_decides_and_readers_do_not(cache) -> None:
    assert _same_order(_store(cache), _store(cache), 30)
    assert _same_order(_store(cache, n_readers=1), _store(cache, n_readers=5), 30)
    assert not torch.equal(next(_store(cache)), next(_store(cache, seed=6)))


@pytest.mark.parametrize("n_served", [0, 1, 3, 4, 13, 14, 27])
def test_a_store_goes_on_to_the_bit_wherever_it_was(cache, n_served) -> None:
    store = _store(cache)
    for _ in range(n_served):
        next(store)
    resumed = _store(cache)
    next(resumed)  # it need not be new
    resumed.load_state_dict(store.state_dict())
    assert _same_order(store, resumed, 30)
    store.close()
    assert _same_order(store, resumed, 3)


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ranks_share_every_batch_without_overlap(cache, n_ranks) -> None:
    alone = _store(cache)
    shares = [_store(cache) for _ in range(n_ranks)]
    for rank, share in enumerate(shares):
        share.take_share(rank, n_ranks, lambda text: [text])
    counts = []
    for _ in range(30):
        whole, parts = next(alone), [next(share) for share in shares]
        assert {share.global_batch_rows for share in shares} == {30}
        assert torch.equal(_sorted_rows(torch.cat(parts)), _sorted_rows(whole))
        place = {tuple(row): number for number, row in enumerate(whole.tolist())}
        for part in parts:  # in the whole batch's order
            numbers = [place[tuple(row)] for row in part.tolist()]
            assert numbers == sorted(numbers)
        counts.append([len(part) for part in parts])
    assert np.sum(counts, axis=0).min() / np.mean(np.sum(counts, axis=0)) > 0.6
    # another number of processes goes on from there
    other = _store(cache)
    other.load_state_dict(shares[0].state_dict())
    assert _same_order(alone, other, 10)


def test_no_block_is_read_by_two_ranks(cache, monkeypatch) -> None:
    from vit_sae_plugin.activations.cache import block_reader

    read: list[tuple] = []
    real = block_reader._read

    def noted(path, name, block, target):
        read.append((name, block))
        real(path, name, block, target)

    monkeypatch.setattr(block_reader, "_read", noted)
    shares = [_store(cache, n_batches_in_buffer=100, with_coordinates=False) for _ in range(2)]
    for rank, share in enumerate(shares):
        share.take_share(rank, 2, lambda text: [text])
        share._start(lambda share=share: share._order.group_at(0), 0).result()
    rows = sum(block.n_rows for _, block in read)
    assert len(read) == len(set(read))
    assert rows == N_IMAGES * N_TOKENS


def test_transcoders_read_two_hooks_side_by_side(cache) -> None:
    both, first = _store(cache, hook_name_out=HOOKS[1]), _store(cache)
    expected = all_rows(cache, HOOKS[1])
    assert both.d_in == 2 * D_MODEL
    assert both.describe()["hook_name_out"] == HOOKS[1]
    batch = next(both)
    image, row, column = both.coordinates.T
    token = torch.where(row < 0, 0, 1 + 4 * row + column)
    assert torch.equal(batch[:, D_MODEL:], expected[image, token])
    assert torch.equal(batch[:, :D_MODEL], all_rows(cache, HOOKS[0])[image, token])
    assert next(first).shape == (30, D_MODEL)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_other_formats_are_read_as_they_were_stored(cache, tmp_path, dtype) -> None:
    small = small_cache(tmp_path / "c", small_model(), images_of(N_IMAGES), dtype=dtype)
    store = _store(small, train_batch_size_tokens=23)
    rows = torch.cat(list(islice(store, 17)))
    assert rows.dtype == torch.float32
    expected = all_rows(small, HOOKS[0]).flatten(0, 1)
    assert torch.equal(_sorted_rows(rows), _sorted_rows(expected))
    # in the same order whatever the format
    exact = _store(cache, train_batch_size_tokens=23)
    torch.testing.assert_close(rows, torch.cat(list(islice(exact, 17))), rtol=0.02, atol=0.05)
    halved = next(_store(small, dtype=torch.bfloat16))
    assert halved.dtype == torch.bfloat16


def test_what_was_deleted_or_cut_short_in_use_is_named_and_can_be_put_back(tmp_path) -> None:
    cache = small_cache(tmp_path / "c", small_model(), images_of(N_IMAGES), images_per_shard=2)
    store, unhurt = _store(cache), _store(cache)
    next(store), next(unhurt)
    store.close()
    path = cache.path / "shards" / "shard-000003" / f"{HOOKS[0]}.rows.bin"
    contents = path.read_bytes()
    for damage, reason in (
        (lambda: path.write_bytes(contents[:40]), "it ends after"),
        (path.unlink, "No such file"),
    ):
        path.write_bytes(contents)
        damage()
        with pytest.raises(DamagedCacheError, match=rf"shard 3 is .*\({reason}.*--repair"):
            list(islice(store, 15))
    path.write_bytes(contents)
    unhurt.load_state_dict(store.state_dict())
    assert _same_order(store, unhurt, 15)


def test_a_state_of_other_rows_is_refused(cache, tmp_path) -> None:
    other = small_cache(tmp_path / "c", small_model(), images_of(N_IMAGES - 1))
    with pytest.raises(ValueError, match="the run read other rows, but now it would read"):
        _store(other).load_state_dict(_store(cache).state_dict())
    with pytest.raises(ValueError, match="the run read no cache, but now"):
        _store(other).load_state_dict({"image_batch": 0})


@settings(deadline=None, max_examples=50)  # timings of a loaded machine say nothing
@given(
    rows=st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(sum),
    block_rows=st.integers(1, 20),
    buffer_rows=st.integers(1, 200),
    seed=st.integers(0, 3),
)
def test_the_order_of_an_epoch_is_a_permutation_in_bounded_memory(
    rows, block_rows, buffer_rows, seed
) -> None:
    order = ReadOrder(dict(enumerate(rows)), block_rows, buffer_rows, seed)
    seen, position = [], 0
    for number in range(order.n_groups):
        group = order.group(1, number)
        assert (group.epoch, group.first_row) == (1, position)
        assert order.group_at(order.n_rows + position).number == number
        assert order.group_at(order.n_rows + position + len(group.order) - 1).number == number
        assert len(group.order) < buffer_rows + block_rows
        assert sorted(group.order) == list(range(len(group.order)))
        for block in group.blocks:
            assert 0 < block.n_rows <= block_rows
            seen += [(block.shard, row) for row in range(block.start, block.start + block.n_rows)]
        position += len(group.order)
    assert sorted(seen) == [(shard, row) for shard, n in enumerate(rows) for row in range(n)]
    assert order.group(1, order.n_groups).epoch == 2


def test_reading_needs_no_preadv_which_windows_lacks(cache, monkeypatch) -> None:
    rows = next(_store(cache))
    monkeypatch.delattr(os, "preadv", raising=False)
    assert torch.equal(next(_store(cache)), rows)


def test_after_a_failed_read_nothing_is_written_late(cache, monkeypatch) -> None:
    over = []

    def slowly(path, name, block, target) -> None:
        if not over:
            over.append("first")
            raise DamagedCacheError("as if a shard were gone")
        time.sleep(0.05)
        over.append(block)

    monkeypatch.setattr(block_reader, "_read", slowly)
    store = _store(cache, with_coordinates=False, n_readers=3)
    with pytest.raises(DamagedCacheError):
        next(store)
    n_blocks = len(store._order.group(0, 0).blocks)
    assert len(over) == n_blocks > 3
