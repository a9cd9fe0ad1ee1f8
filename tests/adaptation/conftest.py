"""A tiny CLIP with a tokenizer of words, and drawn images of four classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny_models import tiny_open_clip
from vit_sae_plugin.datasets import ArrayImages
from vit_sae_plugin.hooked_vit import HookedViT

WORDS = "a photo of red blue green black . an picture".split()
START, END, LENGTH = 98, 99, 16


def tokenize(texts: list[str], length: int = LENGTH) -> torch.Tensor:
    """One token a word between a start and an end token; the end's number is the largest."""
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in enumerate(texts):
        words = text.replace(".", " .").split()
        numbers = [START, *(WORDS.index(word) + 1 for word in words), END]
        ids[row, : len(numbers)] = torch.tensor(numbers)
    return ids


def preprocess(image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image.resize((32, 32)), dtype=np.float32) / 255 - 0.5)
    return pixels.permute(2, 0, 1) * 4


def tiny_clip(seed: int = 0, **sizes) -> HookedViT:
    """Three vision blocks of width 32, two text blocks, with images and words of this file."""
    module = tiny_open_clip(seed, **sizes)
    with torch.no_grad():
        module.logit_scale.fill_(3.0)
    return HookedViT.from_module(module, preprocess=preprocess, tokenizer=tokenize)


@pytest.fixture
def clip() -> HookedViT:
    return tiny_clip()


@pytest.fixture
def images() -> ArrayImages:
    """Six images of each of four colours, with noise."""
    draws = np.random.default_rng(0)
    colors = np.array([[220, 30, 30], [30, 30, 220], [30, 220, 30], [20, 20, 20]])
    labels = np.arange(24) % 4
    arrays = (colors[labels][:, None, None, :] + draws.integers(-20, 20, (24, 40, 40, 3))).clip(
        0, 255
    )
    return ArrayImages(
        arrays.astype(np.uint8), labels=labels, class_names=["red", "blue", "green", "black"]
    )
