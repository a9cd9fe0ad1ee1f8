import numpy as np
import pytest
import torch

from vit_sae_plugin.activations.embedding_rows import EmbeddingRows
from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics
from vit_sae_plugin.activations.embedding_store import EmbeddingStore
from vit_sae_plugin.activations.row_store import RowStore


def numbered_rows(n):
    return EmbeddingRows(np.arange(n, dtype=np.float32)[:, None])


def test_each_epoch_visits_every_row_once_in_a_new_order():
    store = EmbeddingStore(numbered_rows(10), train_batch_size_tokens=4, seed=3)
    served = torch.cat([next(store) for _ in range(5)]).flatten().tolist()
    assert sorted(served[:10]) == sorted(served[10:]) == list(range(10))
    assert served[:10] != served[10:] != list(range(10))


def test_a_batch_may_be_longer_than_the_data():
    store = EmbeddingStore(numbered_rows(3), train_batch_size_tokens=8)
    batch = next(store)
    assert batch.shape == (8, 1)
    assert torch.bincount(batch.flatten().long()).min() >= 2


def test_a_resumed_store_goes_on_with_the_very_next_batch():
    whole = EmbeddingStore(numbered_rows(10), train_batch_size_tokens=3, seed=1)
    expected = [next(whole) for _ in range(8)]
    first = EmbeddingStore(numbered_rows(10), train_batch_size_tokens=3, seed=1)
    for _ in range(4):
        next(first)
    second = EmbeddingStore(numbered_rows(10), train_batch_size_tokens=3, seed=1)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(next(second), batch) for batch in expected[4:])


def test_the_seed_decides_the_order():
    def served(seed):
        return next(EmbeddingStore(numbered_rows(50), train_batch_size_tokens=50, seed=seed))

    assert torch.equal(served(1), served(1))
    assert not torch.equal(served(1), served(2))


def test_rows_are_standardised_by_the_statistics_given():
    statistics = EmbeddingStatistics(mean=torch.tensor([2.0]), scale=0.5)
    store = EmbeddingStore(numbered_rows(1), train_batch_size_tokens=1, statistics=statistics)
    assert next(store).tolist() == [[-1.0]]


def test_a_batch_needs_rows():
    with pytest.raises(ValueError, match="train_batch_size_tokens is 0"):
        EmbeddingStore(numbered_rows(3), train_batch_size_tokens=0)


def test_shared_out_the_batches_are_the_same_and_can_be_resumed_by_another_number():
    def stores(n_ranks, state=None):
        made = []
        for rank in range(n_ranks):
            store = EmbeddingStore(numbered_rows(10), train_batch_size_tokens=4, seed=1)
            store.take_share(rank, n_ranks, gather=lambda text: [text])
            if state is not None:
                store.load_state_dict(state)
            made.append(store)
        return made

    def batch(stores):
        shares = [next(store) for store in stores]
        assert {store.global_batch_rows for store in stores} == {4}
        return torch.cat(shares).flatten().tolist()

    alone = EmbeddingStore(numbered_rows(10), train_batch_size_tokens=4, seed=1)
    expected = [next(alone).flatten().tolist() for _ in range(7)]
    three = stores(3)
    assert [batch(three) for _ in range(4)] == expected[:4]
    five = stores(5, three[2].state_dict())  # more ranks than rows: one share is empty
    assert [batch(five) for _ in range(3)] == expected[4:]


def test_a_store_that_cannot_be_shared_says_so():
    class OwnStore(EmbeddingStore):
        take_share = RowStore.take_share

    store = OwnStore(numbered_rows(10), train_batch_size_tokens=4)
    with pytest.raises(ValueError, match="OwnStore, which can't be shared by 2 processes"):
        store.take_share(0, 2, gather=lambda text: [text])
