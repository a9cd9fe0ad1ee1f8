"""Walk through images and get the activations that an SAE reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from vit_sae_plugin.datasets.image_loader import ImageLoader

if TYPE_CHECKING:
    from vit_sae_plugin.activations.activation_source import ActivationSource
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.datasets.image_loader import ImageBatch
    from vit_sae_plugin.hooked_vit import HookedViT


class ImageActivations:
    """Batches of ``(images, activations [batch, token, d_in])``; the text tower never runs.

    Args:
        model: the model.
        source: the hook and tokens.
        images: where images come from.
        batch_size_images: images in a forward pass.
        n_images: how many to use; None: all.
        shuffle: visit a map-style source in a random order fixed by ``seed``; else in its own.
        seed: of that order.
        n_workers: processes that decode images.
        progress: show a progress bar.
    """

    def __init__(
        self,
        model: HookedViT,
        source: ActivationSource,
        images: ImageSource,
        *,
        batch_size_images: int = 32,
        n_images: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        n_workers: int = 0,
        progress: bool = False,
    ):
        if batch_size_images < 1:
            raise ValueError(f"batch_size_images must be at least 1, got {batch_size_images}")
        if n_images is not None and n_images < 1:
            raise ValueError(f"n_images must be at least 1, or None for all; got {n_images}")
        if model.preprocess is None:
            raise ValueError(
                "the model has no preprocessing; pass preprocess= to HookedViT.from_module"
            )
        self.model = model
        self.source = source
        self.images = images
        self.n_images = n_images
        self.progress = progress
        self.n_seen = 0
        self.loader = ImageLoader(
            images,
            model.preprocess,
            batch_size_images=batch_size_images,
            n_workers=n_workers,
            shuffle=shuffle and not images.is_streaming,
            seed=seed,
        )

    def batches(self) -> Iterator[ImageBatch]:
        """The images' pixels, on the model's device and in its precision."""
        cfg = self.model.cfg
        self.n_seen = 0
        total = self.n_images if self.n_images is not None else self.images.n_images
        with tqdm(total=total, unit="image", disable=not self.progress) as bar:
            for batch in self.loader:
                if self.n_images is not None:
                    batch = _first(batch, self.n_images - self.n_seen)
                batch.pixels = batch.pixels.to(cfg.device, cfg.dtype)
                self.n_seen += len(batch.ids)
                bar.update(len(batch.ids))
                yield batch
                if self.n_seen == self.n_images:
                    break

    def __iter__(self) -> Iterator[tuple[ImageBatch, Float[Tensor, "batch token d_in"]]]:
        for batch in self.batches():
            yield batch, self.source.activations(self.model, batch.pixels)

    def rows(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """The activations alone, a row for each token: what ``evaluate_embeddings`` takes."""
        for _, acts_btd in self:
            yield acts_btd.flatten(0, 1)

    def labelled_rows(self) -> tuple[Float[Tensor, "images d_in"], Int[Tensor, " images"]]:
        """All pooled activations with their labels, for fitting a probe; unlabelled ones left out.

        Raises:
            ValueError: the hook has more than one token an image, or no image has a label.
        """
        rows, labels = [], []
        for batch, acts_btd in self:
            if acts_btd.shape[1] != 1:
                raise ValueError(
                    f"{self.source.hook_name} gives {acts_btd.shape[1]} tokens an image; a probe "
                    "wants one: hook_image_embed, or token_kind 'cls'"
                )
            labelled = batch.label >= 0
            rows.append(acts_btd[:, 0].float().cpu()[labelled])
            labels.append(batch.label[labelled])
        if sum(len(part) for part in labels) == 0:
            raise ValueError(f"no image of {self.images.name} has a label")
        return torch.cat(rows), torch.cat(labels)


def _first(batch: ImageBatch, n: int) -> ImageBatch:
    if len(batch.ids) > n:
        batch.pixels, batch.index = batch.pixels[:n], batch.index[:n]
        batch.label, batch.ids = batch.label[:n], batch.ids[:n]
    return batch
