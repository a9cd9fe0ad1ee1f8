"""The rows that an SAE reads, without their images: what ``evaluate_embeddings`` takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.attached_sae.cached_sae import CachedSAE
from vit_sae_plugin.datasets import open_images

if TYPE_CHECKING:
    from vit_sae_plugin.attached_sae import AttachedSAE


def image_rows(
    attached: AttachedSAE | CachedSAE, images: Any, **settings: Any
) -> Iterator[Float[Tensor, "rows d_in"]]:
    """The activations of images, a row for each token that the SAE reads, in batches.

    Args:
        attached: the SAE on its model, or on a cache, whose images are meant then.
        images: an image source, or what ``open_images`` makes one of.
        settings: of the walk, such as ``batch_size_images`` and ``n_images``: see ``ImageWalk``, or
            ``CachedSAE.batches``.
    """
    if isinstance(attached, CachedSAE):
        for run in attached.batches(**settings):
            yield run.acts_btd.flatten(0, 1)
        return
    for batch in attached.walk(open_images(images), **settings):
        yield attached.activations(batch.pixels).flatten(0, 1)


def labelled_rows(
    attached: AttachedSAE, images: Any, **settings: Any
) -> tuple[Float[Tensor, "images d_in"], Int[Tensor, " images"]]:
    """All pooled activations with their labels, for fitting a probe; unlabelled ones left out.

    Args:
        attached, images, settings: as for ``image_rows``.

    Raises:
        ValueError: the SAE reads more than one token an image, or no image has a label.
    """
    if attached.n_tokens != 1:
        raise ValueError(
            f"the SAE reads {attached.n_tokens} tokens an image of {attached.source.hook_name}; "
            "a probe wants 1: hook_image_embed, or token_kind 'cls'"
        )
    images = open_images(images)
    rows, labels = [], []
    for batch in attached.walk(images, **settings):
        labelled = batch.label >= 0
        rows.append(attached.activations(batch.pixels)[:, 0].float().cpu()[labelled])
        labels.append(batch.label[labelled])
    if sum(len(part) for part in labels) == 0:
        raise ValueError(f"no image of {images.name} has a label; want some to fit a probe on")
    return torch.cat(rows), torch.cat(labels)
