"""Contrastive loss: by hand, and without duplicate captions as negatives."""

import math

import pytest
import torch

from vit_sae_plugin.evaluation.contrastive import ContrastiveBatches, contrastive_loss


def test_loss_worked_by_hand():
    images = torch.tensor([[2.0, 0.0], [0.0, 3.0]])  # normalised first
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # logits 1 on the diagonal, 0 off it
    expected = -math.log(math.e / (math.e + 1))
    assert contrastive_loss(images, texts, 1.0) == pytest.approx(expected)
    # one row [1, 0] and one row [1, 0]: rows give ln 2 twice off by ±½, columns too
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    rows = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2
    assert contrastive_loss(same, texts, 1.0) == pytest.approx((rows + math.log(2)) / 2)


def add(batches, caption, direction=0):
    embed = torch.eye(4)[direction]
    batches.add(caption, {"original": embed}, embed)


def test_no_caption_occurs_twice_in_a_batch():
    batches = ContrastiveBatches(batch_size=2, logit_scale=1.0)
    for caption in ("cat", "cat", "cat"):
        add(batches, caption)
    assert batches.n_batches == 0
    add(batches, "dog", 1)
    add(batches, "dog", 1)
    assert batches.n_batches == 2
    matched = -math.log(math.e / (math.e + 1))
    assert batches.compute() == {"original": pytest.approx(matched)}
    assert batches.n_left_out == 1


def test_memory_is_bounded_and_what_is_left_out_is_counted():
    batches = ContrastiveBatches(batch_size=2, logit_scale=1.0, max_open=3)
    for _ in range(10):
        add(batches, "cat")
    assert batches.n_left_out == 7


def test_without_a_full_batch_the_largest_is_used_and_its_size_said():
    batches = ContrastiveBatches(batch_size=64, logit_scale=1.0)
    for direction, caption in enumerate(("cat", "dog", "owl")):
        add(batches, caption, direction)
    add(batches, "cat")
    assert batches.compute()["original"] == pytest.approx(math.log(1 + 2 / math.e))
    assert batches.batch_size == 3
    assert batches.n_left_out == 1


def test_nothing_to_compare_gives_nothing():
    batches = ContrastiveBatches(batch_size=8, logit_scale=1.0)
    add(batches, "cat")
    assert batches.compute() == {}


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="batch_size is 1; want 2"):
        ContrastiveBatches(batch_size=1, logit_scale=1.0)
