"""Pooled, projected embeddings of images or captions, in order, each with its id."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.activations.embedding_rows import EmbeddingRows
from vit_sae_plugin.activations.image_walk import ImageWalk

if TYPE_CHECKING:
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT


@torch.no_grad()
def embed_images(
    model: HookedViT,
    images: ImageSource,
    *,
    hook_name: str = "hook_image_embed",
    batch_size_images: int = 64,
    n_workers: int = 0,
    progress: bool = True,
) -> EmbeddingRows:
    """One row for each readable image of a source, in the source's order; ids are the images'.

    Images that can't be read have no row; a warning counts them.

    Raises:
        NoReadableImagesError: no image of the source can be read.
        ValueError: the hook gives more than one row for each image, or the model has no
            ``preprocess``.
    """
    source = ActivationSource.from_model(model, hook_name, "all")
    walk = ImageWalk(
        model,
        images,
        batch_size_images=batch_size_images,
        n_workers=n_workers,
        progress=progress,
        description="Embedding images",
    )
    rows, ids = [], []
    for batch in walk:
        acts_btd = source.activations(model, batch.pixels)
        if acts_btd.shape[1] != 1:
            raise ValueError(
                f"{hook_name} has {acts_btd.shape[1]} tokens for each image; "
                "want a hook with one row for each, such as hook_image_embed"
            )
        rows.append(acts_btd[:, 0].float().cpu().numpy())
        ids.extend(batch.ids)
    if len(walk.skipped) > 0:
        table = walk.skipped.to_frame()
        warnings.warn(
            f"{images.name}: {len(table)} images could not be used and have no row, the first "
            f"{table['id'].iloc[0]}: {table['reason'].iloc[0]}",
            stacklevel=3,
        )
    return EmbeddingRows(np.concatenate(rows), ids, name=images.name)


@torch.no_grad()
def embed_texts(
    model: HookedViT,
    texts: Sequence[str],
    *,
    batch_size_texts: int = 256,
    progress: bool = True,
) -> EmbeddingRows:
    """One row for each caption, not normalised; the id of a row is its caption.

    Raises:
        ValueError: no captions, or the model has no text tower.
    """
    if not texts:
        raise ValueError("there are no captions; want one or more to embed")
    starts = range(0, len(texts), batch_size_texts)
    rows = [
        model.encode_text(list(texts[start : start + batch_size_texts])).float().cpu().numpy()
        for start in tqdm(starts, desc="Embedding captions", unit="batch", disable=not progress)
    ]
    return EmbeddingRows(np.concatenate(rows), list(texts), name="captions")
