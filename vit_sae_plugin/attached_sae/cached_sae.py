"""An SAE on activations from disk: what ``AttachedSAE`` is on a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.activations.cache import ActivationCache, CacheMismatchError
from vit_sae_plugin.activations.cache.cache_plan import check_same
from vit_sae_plugin.activations.token_selection import selected_positions
from vit_sae_plugin.attached_sae.row_coder import RowCoder
from vit_sae_plugin.attached_sae.upper_run import where_to_start
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.fingerprints import known_model_fingerprint, values_sha256
from vit_sae_plugin.saved_sae import check_finite_weights

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations import EmbeddingStatistics
    from vit_sae_plugin.datasets import ImageRecord
    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

_COMPARED = (
    *("n_prefix_tokens", "grid", "n_tokens", "image_size", "patch_size"),
    *("preprocessing", "model_sha256"),
)


@dataclass
class CachedRun:
    """Some images at the SAE's place in the model, as ``UpperRun`` is."""

    cached: CachedSAE
    """The SAE on its cache."""
    index: Int[Tensor, " batch"]
    """Position in the source of images."""
    ids: list[str]
    """Each image's id."""
    label: Int[Tensor, " batch"]
    """Index of the class, −1 for none."""
    acts_btd: Float[Tensor, "batch token d_in"]
    """What the SAE reads."""
    target_btd: Float[Tensor, "batch token d_out"]
    """What it reconstructs; the same, but for a transcoder."""
    value: Float[Tensor, "batch all_tokens d_out"]
    """All that the cache holds where the SAE writes."""

    @torch.no_grad()
    def output(
        self, acts_btd: Float[Tensor, "batch token d_out"]
    ) -> Float[Tensor, "batch d_embed"]:
        """The model's output with these activations where the SAE writes: its upper blocks run.

        Args:
            acts_btd: for each image in order.

        Raises:
            ValueError: see ``CachedSAE.spliced_model``.
        """
        model = self.cached.spliced_model
        start, _ = where_to_start(self.cached.hook_name_out, model.cfg.n_layers)
        value = self.value.to(model.cfg.device, model.cfg.dtype)
        new = self.cached.source.replace(model.cfg, value, acts_btd)
        return model(new, start_at_layer=start, output_only=True)


class CachedSAE:
    """An SAE on the rows of a cache: no image is decoded and no model runs.

    Args:
        cache: holds the hook that the SAE reads, for the tokens that it reads or more.
        sae: any SAELens SAE or transcoder.
        model: whose upper blocks ``output`` runs; not needed for anything else.
        source: hook and tokens. Default: as the SAE's metadata say.
        statistics: centring and scaling of the SAE's training rows. Default: in its metadata.

    Attributes:
        rows: the SAE without its model.
        source: the hook and tokens that it reads.
        images: what the cache knows of the images; it gives no pictures.

    Raises:
        CacheMismatchError: the cache is of another model, other preprocessing or tokens, or lacks
            the hook; both values are shown.
        ValueError: the SAE names no hook, or is of another width.
    """

    def __init__(
        self,
        cache: ActivationCache,
        sae: SAE[Any],
        *,
        model: HookedViT | None = None,
        source: ActivationSource | None = None,
        statistics: EmbeddingStatistics | None = None,
    ) -> None:
        check_finite_weights(sae.state_dict(), "this SAE")
        self.cache, self.sae, self.model = cache, sae, model
        self.source = source or _source_in_metadata(cache, sae)
        self.hook_name_out: str = sae.cfg.metadata.hook_name_out or self.source.hook_name
        self.rows = RowCoder(
            sae,
            statistics=statistics,
            input_scaling=self.source.input_scaling,
            d_head=None if model is None else model.cfg.d_head,
        )
        self.images: ImageSource = CachedPictures(cache)
        self._check_same()
        for hook, width, name in (
            (self.source.hook_name, self.rows.d_in, "d_in"),
            (self.hook_name_out, self.rows.d_out, "d_out"),
        ):
            if cache.d_in(hook) != width:
                raise CacheMismatchError(
                    f"{hook} is {cache.d_in(hook)} wide in the cache {cache.path}, but the SAE's "
                    f"{name} is {width}; want a cache of the model that it was trained on"
                )
        self._chosen = self._positions()

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.rows.d_sae

    @cached_property
    def layout(self) -> TokenLayout:
        """Which of the tokens that the SAE reads is what."""
        chosen = self._chosen
        return self.cache.tokens if isinstance(chosen, slice) else self.cache.tokens.select(chosen)

    def batches(
        self,
        batch_size_images: int = 32,
        *,
        start_batch: int = 0,
        n_images: int | None = None,
        seed: int = 0,
        progress: bool = False,
        description: str | None = None,
    ) -> Iterator[CachedRun]:
        """The images that have rows, in order.

        Args:
            batch_size_images: images of a batch; the last one of a shard may be smaller.
            start_batch: the first batch to give.
            n_images: only so many: the same that ``ImageWalk(shuffle=True)`` would visit first.
                None: all.
            seed: of the choice.
            progress: show a progress bar.
            description: in front of it.

        Raises:
            ValueError: a number is too small.
        """
        for name, number in (("batch_size_images", batch_size_images), ("n_images", n_images)):
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}; want 1 or more")
        index = None if n_images is None else self.sample(n_images, seed)
        total = self.cache.n_images if index is None else len(index)
        settings: dict[str, Any] = {"start_batch": start_batch, "index": index}
        hook, out = self.source.hook_name, self.hook_name_out
        read = self.cache.images_in_order(hook, batch_size_images, **settings)
        written = read
        if out != hook:
            written = self.cache.images_in_order(out, batch_size_images, **settings)
        with tqdm(
            total=total,
            initial=min(start_batch * batch_size_images, total),
            desc=description,
            unit=" images",
            disable=not progress,
        ) as bar:
            for batch in read:
                value = batch.acts_btd if written is read else next(written).acts_btd
                target = value[:, self._chosen]
                acts = target if written is read else batch.acts_btd[:, self._chosen]
                yield CachedRun(self, batch.index, batch.ids, batch.label, acts, target, value)
                bar.update(min(len(batch.ids), total - bar.n))

    def acts_of(self, index: list[int]) -> Iterator[Float[Tensor, "batch token d_in"]]:
        """What the SAE reads of the images at these places, those that have rows."""
        for batch in self.cache.images_in_order(self.source.hook_name, 32, index=index):
            yield batch.acts_btd[:, self._chosen]

    @cached_property
    def spliced_model(self) -> HookedViT:
        """The model, whose output follows from what the cache holds.

        Raises:
            ValueError: there is no model or another one, or the cache lacks what its blocks read.
        """
        place = f"the cache {self.cache.path}"
        if self.model is None:
            raise ValueError(
                f"splicing runs the model's upper blocks on {place}; want model=, or splice=False "
                "(--suite reconstruction)"
            )
        check_same(
            str(self.cache.path),
            {"model_sha256": (self._known("model_sha256"), known_model_fingerprint(self.model))},
            "want the model that it was made with",
        )
        _, base_name = where_to_start(self.hook_name_out, self.model.cfg.n_layers)
        kept = (self._known("token_kind"), list(self._known("seqpos_slice")))
        if base_name != self.hook_name_out or kept != ("all", [None]):
            raise ValueError(
                f"splicing can't go on from {kept[0]!r} tokens of {self.hook_name_out}, all that "
                f"{place} holds; want all tokens of the residual stream (…hook_resid_post), the "
                "images, or splice=False (--suite reconstruction)"
            )
        return self.model

    def sample(self, n_images: int, seed: int = 0) -> list[int]:
        """Places of the images, of those that have rows, that a shuffled ``ImageWalk`` visits first
        (of a stream, the first ones)."""
        n_places = self.cache.plan.n_images or 0
        order = np.arange(n_places)
        if not any(part.is_stream for part in self.cache.plan.parts):
            order = np.random.default_rng([seed, 0]).permutation(n_places)
        used = np.isin(order, self.cache.image_table["index"].to_numpy())
        return np.sort(order[used][:n_images]).tolist()

    def _known(self, name: str) -> Any:
        return self.cache.plan.model.get(name)

    def _check_same(self) -> None:
        metadata = self.source.to_metadata()
        pairs = {name: (self._known(name), metadata.get(name)) for name in _COMPARED}
        check_same(
            str(self.cache.path),
            {name: pair for name, pair in pairs.items() if None not in pair},
            "want a cache of what the SAE was trained on",
        )

    def _positions(self) -> slice | Tensor:
        """The SAE's tokens among the cache's."""
        there = (self._known("token_kind"), tuple(self._known("seqpos_slice")))
        wanted = (self.source.token_kind, tuple(self.source.seqpos_slice))
        if there == wanted:
            return slice(None)
        if there != ("all", (None,)):
            check_same(
                str(self.cache.path),
                {"(token_kind, seqpos_slice)": (there, wanted)},
                "want a cache of these tokens, or of all",
            )
        return selected_positions(self.cache.tokens, *wanted)


class CachedPictures(ImageSource):
    """The images that a cache was made of, by name, number and label; their pictures aren't there.

    Its fingerprint is that of the source, so that what is computed from a cache belongs to it.
    """

    def __init__(self, cache: ActivationCache) -> None:
        parts = cache.plan.parts
        self._cache = cache
        self.name = " + ".join(part.name for part in parts)
        self.class_names = cache.class_names
        self.n_images = cache.plan.n_images
        self.is_streaming = any(part.is_stream for part in parts)

    def fingerprint(self) -> str:
        """The source's; of several sources, or of a part of them, one of its own."""
        plan, shards = self._cache.plan, self._cache.shards
        fingerprints = [part.fingerprint for part in plan.parts]
        is_whole = plan.n_images is not None and len(shards) == len(plan.shards)
        if is_whole and len(fingerprints) == 1:
            return fingerprints[0]
        return values_sha256({"of": fingerprints, "shards": None if is_whole else shards})

    def record(self, index: int) -> ImageRecord:
        """Raises: there are no pictures."""
        raise TypeError(
            f"the cache {self._cache.path} holds activations, no pictures; want the images"
        )


def _source_in_metadata(cache: ActivationCache, sae: SAE[Any]) -> ActivationSource:
    metadata = sae.cfg.metadata
    if metadata.hook_name is None:
        raise ValueError(
            "this SAE's metadata name no hook, so there is no telling what it reads; set "
            "sae.cfg.metadata.hook_name, or pass source=cache.source(hook_name)"
        )
    if metadata.model_class_name is None:
        return cache.source(metadata.hook_name)
    source = ActivationSource.from_metadata(metadata)
    cache.plan.check_hook(source.hook_name)
    return source
