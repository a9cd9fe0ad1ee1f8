"""What settings name, opened: a model and images, or a file of embeddings; and what follows from
them for the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.activations.cache import ActivationCache, open_cache
from vit_sae_plugin.activations.embedding_rows import EmbeddingRows, load_embedding_rows
from vit_sae_plugin.activations.saev_shards import SaevShards, open_saev
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.training.cached_rows import store_of_cache
from vit_sae_plugin.training.presets import complete_settings
from vit_sae_plugin.training.row_stores import store_of_embeddings, store_of_images
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig
from vit_sae_plugin.training.saev_rows import store_of_saev

if TYPE_CHECKING:
    from vit_sae_plugin.activations.row_store import RowStore
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.training.ranks.process_group import Ranks

_FIRST_EXPANSION_FACTOR = 8


@dataclass
class RunInput:
    """Where the rows of a run come from."""

    model: HookedViT | None = None
    """None: rows are there without one."""
    images: ImageSource | None = None
    """None: there are only embeddings, or a cache."""
    cache: ActivationCache | None = None
    """None: rows come from elsewhere."""
    embeddings: EmbeddingRows | None = None
    """None: rows come from images."""
    saev: SaevShards | None = None
    """None: rows don't come from saev."""

    @classmethod
    def open(
        cls,
        settings: dict[str, Any],
        *,
        model: HookedViT | None = None,
        images: Any = None,
        from_file: bool = True,
    ) -> RunInput:
        """Open what the settings name.

        Args:
            settings: of a runner, complete or not; ``device`` must be known.
            model, images: instead of those.
            from_file: the settings may come from anyone's file, so images that start a program are
                refused.

        Raises:
            ValueError: there is nothing to train on.
        """
        if settings.get("embeddings_path"):
            rows = load_embedding_rows(
                settings["embeddings_path"], non_finite=settings.get("non_finite_rows", "refuse")
            )
            return cls(embeddings=rows)
        if images is None and not settings.get("dataset_path"):
            raise ValueError("there is nothing to train on: give --images or --embeddings")
        cache = open_cache(settings["dataset_path"] if images is None else images)
        if cache is not None:
            return cls(model, cache=cache)
        if images is None and (shards := open_saev(settings["dataset_path"])) is not None:
            return cls(model, saev=shards)
        images = (
            open_images(settings["dataset_path"], from_file=from_file)
            if images is None
            else open_images(images)
        )
        return cls(load_model(settings) if model is None else model, images)

    def config(self, settings: dict[str, Any]) -> ViTSAERunnerConfig:
        """The settings, with what depends on the input worked out.

        Raises:
            ValueError: a setting that doesn't fit.
        """
        sae = dict(settings.get("sae") or {})
        settings = {**settings, "sae": sae}
        if sae.get("d_sae") is None and sae.get("expansion_factor") is None:
            sae["expansion_factor"] = _FIRST_EXPANSION_FACTOR
        n_rows: int | None
        if self.embeddings is not None:
            d_in, n_rows = self.embeddings.d_in, len(self.embeddings)
        elif self.cache is not None:
            d_in, n_rows = _complete_from_cache(settings, self.cache), self.cache.n_rows
        elif self.saev is not None:
            d_in, n_rows = self.saev.d_model, _complete_from_saev(settings, self.saev)
        elif self.model is not None:
            model = self.model
            # As PatchSAE does: the last block's output serves the class token alone.
            default_hook = f"blocks.{max(model.cfg.n_layers - 2, 0)}.hook_resid_post"
            d_in = model.hook_width(settings.setdefault("hook_name", default_hook))
            if settings.get("hook_name_out") and sae.get("d_out") is None:
                sae["d_out"] = model.hook_width(settings["hook_name_out"])
            n_rows = self._rows_per_epoch(settings)
        else:
            raise ValueError("there is neither a model nor embeddings; want one of the two")
        return ViTSAERunnerConfig.from_dict(
            complete_settings(settings, d_in=d_in, n_rows_per_epoch=n_rows)
        )

    def _rows_per_epoch(self, settings: dict[str, Any]) -> int | None:
        if self.images is None or self.model is None or self.images.n_images is None:
            return None
        if settings["hook_name"] == "hook_image_embed":
            return self.images.n_images
        n_tokens = len(self.model.cfg.tokens.positions(settings.get("token_kind", "all")))
        return self.images.n_images * n_tokens


def store_of_run(
    cfg: ViTSAERunnerConfig, model: HookedViT | None, images: Any, ranks: Ranks | None
) -> tuple[RowStore, RunInput]:
    """The rows that a run trains on, and what was opened for them.

    Args:
        cfg: complete settings.
        model, images: instead of those that the settings name.
        ranks: the processes that share the rows; None: this one has them all.

    Raises:
        ValueError: there is nothing to train on, or it doesn't fit the settings.
    """
    if cfg.embeddings_path is not None:
        return store_of_embeddings(cfg), RunInput(model)
    cache = open_cache(cfg.dataset_path if images is None else images)
    if cache is not None:
        if model is None and cfg.eval_every_n_steps > 0 and cfg.model_name is not None:
            model = _model_of_run(cfg)
        return store_of_cache(cfg, cache, model), RunInput(model, cache=cache)
    if images is None and (shards := open_saev(cfg.dataset_path)) is not None:
        return store_of_saev(cfg, shards), RunInput(model, saev=shards)
    if images is None and not cfg.dataset_path:
        raise ValueError("dataset_path is empty; want the images to train on")
    source = (
        open_images(cfg.dataset_path, from_file=True) if images is None else open_images(images)
    )
    model = _model_of_run(cfg) if model is None else model
    return store_of_images(cfg, model, source, ranks), RunInput(model, source)


def _model_of_run(cfg: ViTSAERunnerConfig) -> HookedViT:
    return HookedViT.from_recorded(
        cfg.model_name or "",
        cfg.model_from_pretrained_kwargs,
        device=cfg.model_device or cfg.device,
    )


def load_model(settings: dict[str, Any]) -> HookedViT:
    """The model that settings name; ``device`` must be known."""
    return HookedViT.from_recorded(
        settings.get("model_name") or "ViT-B-16",
        settings.get("model_from_pretrained_kwargs") or {},
        device=settings.get("model_device") or settings["device"],
    )


def _complete_from_cache(settings: dict[str, Any], cache: ActivationCache) -> int:
    """Fill in what a cache decides and wasn't given; returns the width of the rows."""
    sae = settings["sae"]
    selection = {name: cache.plan.model[name] for name in ("token_kind", "seqpos_slice")}
    for name, value in selection.items():
        settings.setdefault(name, value)
    if settings.get("hook_name") is None and len(cache.hook_names) > 1:
        raise ValueError(
            f"the cache {cache.path} holds {', '.join(cache.hook_names)}; choose one with "
            "--hook-name"
        )
    hook_name = settings.get("hook_name") or cache.hook_names[0]
    if settings.get("hook_name_out") and sae.get("d_out") is None:
        sae["d_out"] = cache.d_in(settings["hook_name_out"])
    return cache.d_in(hook_name)


def _complete_from_saev(settings: dict[str, Any], shards: SaevShards) -> int:
    """Fill in the layer, if there is only one; returns the number of rows."""
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in shards.layers]
    if settings.get("hook_name") is None:
        if len(hooks) > 1:
            raise ValueError(
                f"the shards in {shards.path} hold {', '.join(hooks)}; choose one with --hook-name"
            )
        settings["hook_name"] = hooks[0]
    tokens = shards.tokens(settings.get("token_kind") or "all")
    return shards.n_examples * (tokens.stop - tokens.start)
