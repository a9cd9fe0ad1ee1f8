"""CLIP's contrastive loss over batches in which no caption occurs twice."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def contrastive_loss(
    image_embeds: Float[Tensor, "batch d_embed"],
    text_embeds: Float[Tensor, "batch d_embed"],
    logit_scale: float,
) -> float:
    """CLIP's symmetric cross-entropy; row i of both belongs together (Radford et al. 2021, fig. 3).

    Chance level is ``ln(batch)``, so a loss means nothing without its batch size.
    """
    image_embeds = functional.normalize(image_embeds.float(), dim=-1)
    text_embeds = functional.normalize(text_embeds.float(), dim=-1)
    logits = logit_scale * image_embeds @ text_embeds.T
    target = torch.arange(len(logits), device=logits.device)
    losses = [functional.cross_entropy(side, target) for side in (logits, logits.T)]
    return sum(loss.item() for loss in losses) / 2


@dataclass
class _OpenBatch:
    keys: set[Hashable] = field(default_factory=set)
    embeds: list[dict[str, Tensor]] = field(default_factory=list)


class ContrastiveBatches:
    """Groups images, as they come, into batches with distinct captions and averages their losses.

    Two images that show the same would be each other's negatives although they match, so each image
    has a key and goes to the first open batch that lacks it. At most ``max_open`` batches are open,
    so that memory stays constant; an image whose key is in all of them is left out and counted.

    Args:
        batch_size: images in a batch.
        logit_scale: what the model multiplies cosines with.
        max_open: batches filled at the same time.
    """

    def __init__(self, batch_size: int, logit_scale: float, max_open: int = 16):
        if batch_size < 2:
            raise ValueError(f"batch_size is {batch_size}; want 2 or more images")
        self.batch_size = batch_size
        self.logit_scale = logit_scale
        self.max_open = max_open
        self.n_batches = 0
        self.n_left_out = 0
        self._open: list[_OpenBatch] = []
        self._loss: dict[str, float] = {}

    def add(self, key: Hashable, embeds: dict[str, Tensor], text_embed: Tensor) -> None:
        """Add one image: what its caption says, its embedding ``[d_embed]`` under each forward
        pass, and its caption's."""
        for batch in self._open:
            if key not in batch.keys:
                break
        else:
            if len(self._open) == self.max_open:
                self.n_left_out += 1
                return
            batch = _OpenBatch()
            self._open.append(batch)
        batch.keys.add(key)
        batch.embeds.append(embeds | {"_text": text_embed})
        if len(batch.keys) == self.batch_size:
            self._open.remove(batch)
            self._close(batch)

    def _close(self, batch: _OpenBatch) -> None:
        stacked = {
            name: torch.stack([embeds[name] for embeds in batch.embeds]) for name in batch.embeds[0]
        }
        text_embeds = stacked.pop("_text")
        for name, image_embeds in stacked.items():
            loss = contrastive_loss(image_embeds, text_embeds, self.logit_scale)
            self._loss[name] = self._loss.get(name, 0.0) + loss
        self.n_batches += 1

    def compute(self) -> dict[str, float]:
        """Mean loss of each forward pass; empty if there were not two images to compare.

        Batches that never filled up are left out, unless there is no full one: then the largest of
        them is used, and ``batch_size`` is its size.
        """
        if self.n_batches == 0:
            largest = max(self._open, key=lambda batch: len(batch.keys), default=None)
            if largest is None or len(largest.keys) < 2:
                return {}
            self._open.remove(largest)
            self.batch_size = len(largest.keys)
            self._close(largest)
        self.n_left_out += sum(len(batch.keys) for batch in self._open)
        self._open.clear()
        return {name: loss / self.n_batches for name, loss in self._loss.items()}

    @property
    def chance(self) -> float:
        """The loss of a model that knows nothing, ``ln(batch_size)``."""
        return math.log(self.batch_size)
