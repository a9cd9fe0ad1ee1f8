"""Write the latents of a data set, of images or of embeddings, to disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.evaluation.image_activations import ImageActivations
from vit_sae_plugin.evaluation.latent_files import LatentWriter
from vit_sae_plugin.evaluation.model_space import MAX_LATENT_VALUES, ModelSpaceSAE
from vit_sae_plugin.evaluation.splicing import selected_positions

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations.embedding_rows import EmbeddingRows
    from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT


@torch.no_grad()
def save_latents(
    model: HookedViT,
    sae: SAE[Any],
    images: ImageSource,
    folder: str | Path,
    *,
    batch_size_images: int = 32,
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
        images: where images come from; unreadable ones have no rows.
        folder: where to write; it appears only when it is complete.
        batch_size_images: images in a forward pass.
        n_images: only the first so many; None: all.
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
    source = source or ActivationSource.from_metadata(sae.cfg.metadata)
    source.check_model(model)
    walk = ImageActivations(
        model,
        source,
        images,
        batch_size_images=batch_size_images,
        n_images=n_images,
        n_workers=n_workers,
        progress=progress,
    )
    coder = ModelSpaceSAE(sae, statistics=statistics, d_head=model.cfg.d_head)
    told = source.to_metadata() | {
        "architecture": sae.cfg.architecture(),
        "images": images.name,
        "images_fingerprint": images.fingerprint(),
    }
    with LatentWriter(folder, coder.d_sae, told, dtype=dtype, overwrite=overwrite) as writer:
        for batch, acts_btd in walk:
            positions = selected_positions(source, model.cfg, acts_btd)
            n_at_a_time = max(1, MAX_LATENT_VALUES // (acts_btd.shape[1] * coder.d_sae))
            for start in range(0, len(acts_btd), n_at_a_time):
                part = slice(start, start + n_at_a_time)
                writer.add(
                    coder.encode(acts_btd[part]),
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
    coder = ModelSpaceSAE(sae, statistics=statistics)
    told = {"architecture": sae.cfg.architecture(), "embeddings": embeddings.name}
    n_at_a_time = max(1, MAX_LATENT_VALUES // coder.d_sae)
    start = 0
    with LatentWriter(folder, coder.d_sae, told, dtype=dtype, overwrite=overwrite) as writer:
        for rows in embeddings.batches(n_at_a_time):
            latents = coder.encode(rows.to(sae.W_dec.device))[:, None]
            indices = list(range(start, start + len(rows)))
            ids = [embeddings.id(index) for index in indices]
            writer.add(latents, indices, ids, [-1] * len(rows), torch.zeros(1, dtype=torch.int64))
            start += len(rows)
    return Path(folder)
