"""Write the latents of a data set, of images or of embeddings, to disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vit_sae_plugin.activations.token_selection import selected_positions
from vit_sae_plugin.attached_sae import AttachedSAE, RowCoder
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.latent_files import LatentWriter

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations import (
        ActivationSource,
        EmbeddingRows,
        EmbeddingStatistics,
    )
    from vit_sae_plugin.hooked_vit import HookedViT


@torch.no_grad()
def save_latents(
    model: HookedViT,
    sae: SAE[Any],
    images: Any,
    folder: str | Path,
    *,
    batch_size_images: int = 64,
    n_images: int | None = None,
    source: ActivationSource | None = None,
    statistics: EmbeddingStatistics | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    n_workers: int = 0,
    progress: bool = False,
) -> Path:
    """Write every image's latents as sparse rows, in the order of the images.

    ``load_latents(folder)`` reads them back; the format is described in ``latent_files.py``.

    Args:
        model: the model whose activations the SAE reads.
        sae: any SAELens SAE.
        images: an image source, or what ``open_images`` makes one of; unreadable images have no
            rows.
        folder: where to write; it appears only when it is complete.
        batch_size_images: images in a forward pass.
        n_images: only that many of the first; None: all.
        source: hook and tokens, for an SAE whose metadata don't name them.
        statistics: centring and scaling of the SAE's training rows; default: in its metadata.
        dtype: of the values on disk.
        overwrite: replace latents saved there before.
        n_workers: processes that decode images.
        progress: show a progress bar.

    Raises:
        FileExistsError: the folder exists (see ``overwrite``).
        ValueError: the SAE doesn't fit the model, or a setting is out of range.
    """
    images = open_images(images)
    attached = AttachedSAE(model, sae, source, statistics)
    source = attached.source
    walk = attached.walk(
        images,
        batch_size_images=batch_size_images,
        n_images=n_images,
        n_workers=n_workers,
        progress=progress,
    )
    header = source.to_metadata() | {
        "architecture": sae.cfg.architecture(),
        "images": images.name,
        "images_fingerprint": images.fingerprint(),
    }
    with LatentWriter(folder, attached.d_sae, header, dtype=dtype, overwrite=overwrite) as writer:
        for batch in walk:
            value = source.value(model, batch.pixels)
            at_hook = model.cfg.tokens.at_hook(value.shape)
            positions = selected_positions(at_hook, source.token_kind, source.seqpos_slice)
            for part, latents in attached.encode_parts(source.select(model.cfg, value)):
                writer.add(
                    latents,
                    batch.index[part].tolist(),
                    batch.ids[part],
                    batch.label[part].tolist(),
                    positions,
                )
    return Path(folder)


@torch.no_grad()
def save_embedding_latents(
    sae: SAE[Any],
    embeddings: EmbeddingRows,
    folder: str | Path,
    *,
    statistics: EmbeddingStatistics | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Path:
    """Write the latents of embeddings that already exist, a row each, in their order.

    Args:
        sae: any SAELens SAE.
        embeddings: raw rows with their ids.
        folder, statistics, dtype, overwrite: as for ``save_latents``.
    """
    coder = RowCoder(sae, statistics=statistics)
    header = {"architecture": sae.cfg.architecture(), "embeddings": embeddings.name}
    n_at_a_time = next(coder.parts(len(embeddings))).stop
    start = 0
    with LatentWriter(folder, coder.d_sae, header, dtype=dtype, overwrite=overwrite) as writer:
        for rows in embeddings.batches(n_at_a_time):
            latents = coder.encode(rows)[:, None]
            indices = list(range(start, start + len(rows)))
            ids = [embeddings.id(index) for index in indices]
            writer.add(latents, indices, ids, [-1] * len(rows), torch.zeros(1, dtype=torch.int64))
            start += len(rows)
    return Path(folder)
