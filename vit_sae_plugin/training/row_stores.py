"""The rows a run trains on: activations of images as they come, or embeddings made once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens.util import str_to_dtype

from vit_sae_plugin.activations.activations_store import ViTActivationsStore
from vit_sae_plugin.activations.embed import embed_images
from vit_sae_plugin.activations.embedding_rows import EmbeddingRows, load_embedding_rows
from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics
from vit_sae_plugin.activations.embedding_store import EmbeddingStore
from vit_sae_plugin.hooked_vit import embedding_width

if TYPE_CHECKING:
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.training.ranks.process_group import Ranks
    from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig

POOLED_HOOK = "hook_image_embed"
EMBEDDINGS_FILE = "embeddings.npy"


def store_of_images(
    cfg: ViTSAERunnerConfig, model: HookedViT, images: ImageSource, ranks: Ranks | None = None
) -> ViTActivationsStore | EmbeddingStore:
    """Rows from images.

    Pooled embeddings are one row an image: they are made once, kept in the run's folder, and every
    epoch reads them again. A stream can't be, so its embeddings are made as it goes by. Of several
    processes the first makes the file.

    Raises:
        ValueError: a stream's embeddings are to be standardised, which needs them all first.
    """
    is_pooled = cfg.hook_name == POOLED_HOOK and cfg.hook_name_out is None
    if is_pooled and not images.is_streaming:
        return store_of_embeddings(cfg, _embedded_once(cfg, model, images, ranks))
    if cfg.standardize_embeddings:
        raise ValueError(
            "standardize_embeddings needs all embeddings before training, but these images are a "
            "stream; write the embeddings to a file first and give that as embeddings_path"
        )
    return ViTActivationsStore.from_config(model, cfg, images)


def store_of_embeddings(
    cfg: ViTSAERunnerConfig, rows: EmbeddingRows | None = None
) -> EmbeddingStore:
    """Rows from ``cfg.embeddings_path``, or those given; standardised if the settings say so."""
    if rows is None:
        if cfg.embeddings_path is None:
            raise ValueError("embeddings_path is None; want the file of rows to train on")
        rows = load_embedding_rows(
            cfg.embeddings_path, d_in=cfg.sae.d_in, non_finite=cfg.non_finite_rows
        )
        _check_model_made(rows, cfg)
    statistics = None
    if cfg.standardize_embeddings:
        statistics = EmbeddingStatistics.from_rows(rows.batches(), cfg.embedding_modality)
    return EmbeddingStore(
        rows,
        train_batch_size_tokens=cfg.train_batch_size_tokens,
        seed=cfg.seed,
        statistics=statistics,
        dtype=str_to_dtype(cfg.dtype),
        device=cfg.act_store_device or cfg.device,
    )


def _check_model_made(rows: EmbeddingRows, cfg: ViTSAERunnerConfig) -> None:
    """Raise if the model that the settings name makes embeddings of another width."""
    if cfg.model_name is None or cfg.hook_name != POOLED_HOOK:
        return
    width = embedding_width(cfg.model_name)
    if width not in (None, rows.d_in):
        raise ValueError(
            f"the rows of {cfg.embeddings_path} are {rows.d_in} wide, but the embeddings of "
            f"{cfg.model_name} are {width} wide; want the model that made them as model_name "
            "(--model), or null if it has no name (--set model_name=null)"
        )


def _embedded_once(
    cfg: ViTSAERunnerConfig, model: HookedViT, images: ImageSource, ranks: Ranks | None
) -> EmbeddingRows:
    kept = None if cfg.run_folder is None else Path(cfg.run_folder) / EMBEDDINGS_FILE
    if kept is None or ranks is None:
        return _load_or_embed(cfg, model, images, kept)
    # one process writes the file, and the others read it
    rows = _load_or_embed(cfg, model, images, kept) if ranks.is_first else None
    ranks.wait_for_all()
    return load_embedding_rows(kept, non_finite=cfg.non_finite_rows) if rows is None else rows


def _load_or_embed(
    cfg: ViTSAERunnerConfig, model: HookedViT, images: ImageSource, kept: Path | None
) -> EmbeddingRows:
    if kept is not None and cfg.resume_from_checkpoint is not None and kept.is_file():
        return load_embedding_rows(kept, non_finite=cfg.non_finite_rows)
    rows = embed_images(
        model,
        images,
        batch_size_images=cfg.store_batch_size_images,
        n_workers=cfg.n_workers,
        progress=cfg.verbose,
    )
    if kept is not None:
        rows.save(kept)
    return rows
