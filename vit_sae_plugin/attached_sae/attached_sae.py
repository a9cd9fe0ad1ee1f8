"""``AttachedSAE``: an SAE on its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.activations.activation_source import MODEL_CLASS_NAME, ActivationSource
from vit_sae_plugin.activations.image_walk import ImageWalk
from vit_sae_plugin.attached_sae.interventions import (
    AnyEdit,
    EditsInOrder,
    LatentEdit,
    Where,
    positions,
)
from vit_sae_plugin.attached_sae.row_coder import RowCoder
from vit_sae_plugin.saved_sae import check_finite_weights

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.hooked_vit.token_layout import TokenLayout


class AttachedSAE:
    """An SAE on its model: how rows reach it, and how its reconstructions go back.

    Activations here are always those of the *model*, of the tokens that the SAE reads, heads
    flattened: ``[batch, token, d_in]``. Token selection, centring, scaling, precision, head axes
    and memory are dealt with inside.

        attached = AttachedSAE(model, sae)
        latents = attached.latents(pixels)                    # [batch, token, d_sae]
        attached.layout.on_grid(latents[..., 625])            # [batch, row, column]
        attached.splice(pixels)                               # the output with the reconstruction
        attached.splice(pixels, remove([625], "patches"), use_error_term=True)

    Args:
        model: the model that the SAE reads.
        sae: any SAELens SAE or transcoder, in training or trained.
        source: hook and tokens. Default: as the SAE's metadata say.
        statistics: centring and scaling of the SAE's training rows. Default: in its metadata.

    Raises:
        ValueError: the SAE names no hook, doesn't fit the model, or has weights that are NaN or
            infinite.
    """

    def __init__(
        self,
        model: HookedViT,
        sae: SAE[Any],
        source: ActivationSource | None = None,
        statistics: EmbeddingStatistics | None = None,
    ):
        self.model = model
        self.sae = sae
        check_finite_weights(sae.state_dict(), "this SAE")
        self.source = source or _source_in_metadata(model, sae)
        self.source.check_model(model)
        self.hook_name_out: str = sae.cfg.metadata.hook_name_out or self.source.hook_name
        self.rows = RowCoder(
            sae,
            statistics=statistics,
            input_scaling=self.source.input_scaling,
            d_head=model.cfg.d_head,
        )
        if self.rows.statistics is not None and self.rows.statistics.modality != "image":
            raise ValueError(
                f"this SAE reads standardised {self.rows.statistics.modality} embeddings, and its "
                "metadata hold no mean and scale of images; pass statistics="
            )
        for name, width, of_sae in (
            (self.source.hook_name, self.rows.d_in, "d_in"),
            (self.hook_name_out, self.rows.d_out, "d_out"),
        ):
            if model.hook_width(name) != width:
                raise ValueError(
                    f"{name} of {model.model_name} is {model.hook_width(name)} wide, but the "
                    f"SAE's {of_sae} is {width}; use the model and hook that it was trained on"
                )

    @property
    def d_in(self) -> int:
        """Width of an activation."""
        return self.rows.d_in

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.rows.d_sae

    @property
    def is_transcoder(self) -> bool:
        """Whether it reconstructs another hook than the one it reads."""
        return self.hook_name_out != self.source.hook_name

    @cached_property
    @torch.no_grad()
    def layout(self) -> TokenLayout:
        """Which of the tokens that the SAE reads is what."""
        pixels = torch.zeros(1, 3, *self.model.cfg.image_size)
        value = self.source.value(self.model, pixels)
        return self.source.layout(self.model.cfg, value)

    @property
    def n_tokens(self) -> int:
        """Tokens that the SAE reads of each image; 1 for pooled embeddings."""
        return len(self.layout)

    def require_patches(self) -> TokenLayout:
        """The layout, of which some tokens are patches.

        Raises:
            ValueError: none is.
        """
        if not self.layout.has("patch"):
            raise ValueError(
                f"this SAE reads {self.source.token_kind!r} tokens of {self.source.hook_name}, "
                "none of which is a patch; want one that reads patches, to show on an image"
            )
        return self.layout

    def walk(self, images: ImageSource, **settings: Any) -> ImageWalk:
        """Batches of preprocessed images; the settings are those of ``ImageWalk``."""
        return ImageWalk(self.model, images, **settings)

    def activations(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token d_in"]:
        """What the model holds where the SAE reads; no block above it runs."""
        return self.source.activations(self.model, pixels)

    def encode(
        self, acts_btd: Float[Tensor, "batch token d_in"], k: int | None = None
    ) -> Float[Tensor, "batch token d_sae"]:
        """Activations → latents, dense; ``k`` as ``RowCoder.encode`` takes it."""
        return self.rows.encode(acts_btd, k)

    def decode(
        self, latents: Float[Tensor, "batch token d_sae"]
    ) -> Float[Tensor, "batch token d_out"]:
        """Latents → reconstruction, as the model holds it."""
        return self.rows.decode(latents)

    def latents(
        self, pixels: Float[Tensor, "batch 3 height width"], k: int | None = None
    ) -> Float[Tensor, "batch token d_sae"]:
        """The latents of preprocessed images, all at once: for few of them."""
        return self.encode(self.activations(pixels), k)

    def encode_parts(
        self, acts_btd: Float[Tensor, "batch token d_in"]
    ) -> Iterator[tuple[slice, Float[Tensor, "part token d_sae"]]]:
        """Latents of a few images at a time: ``RowCoder.encode_parts``."""
        yield from self.rows.encode_parts(acts_btd)

    def reconstruct(
        self,
        acts_btd: Float[Tensor, "batch token d_in"],
        edit: AnyEdit | None = None,
        *,
        use_error_term: bool = False,
        where: Where = "all",
        target_btd: Float[Tensor, "batch token d_out"] | None = None,
    ) -> Float[Tensor, "batch token d_out"]:
        """The SAE's reconstruction, in the model's precision, a few images at a time.

        Args:
            acts_btd: what the SAE reads.
            edit: changes the latents before they are decoded: ``remove([3], "patches")`` and the
                like, or a function of latents ``[batch, token, d_sae]``.
            use_error_term: add what the unedited reconstruction misses, so that with nothing
                edited the result is ``target_btd``.
            where: tokens that get the reconstruction: ``"all"``, ``"patches"``, ``"cls"`` or
                patches as (row, column). The others stay as they are.
            target_btd: what is reconstructed, for a transcoder's error term. Default: ``acts_btd``.
        """
        target = acts_btd if target_btd is None else target_btd
        if use_error_term and edit is None:
            return target
        if isinstance(edit, (LatentEdit, EditsInOrder)):
            edit = edit.on(self.layout, self.d_sae)
        results = []
        for part, latents in self.encode_parts(acts_btd):
            x_hat = self.decode(latents if edit is None else edit(latents))
            if use_error_term:
                if self.rows.keeps_state:
                    latents = self.encode(acts_btd[part])
                x_hat = x_hat - self.decode(latents)
                x_hat = target[part] + x_hat.to(target)  # what skips the latents cancels out
            else:
                x_hat = x_hat + self.rows.skip(acts_btd[part])
            results.append(x_hat.to(target))
        new = torch.cat(results)
        if where == "all":
            return new  # before the layout is asked for, which takes a pass of its own
        places = positions(self.layout, where)
        if isinstance(places, slice):
            return new
        places = places.to(new.device)
        return target.index_copy(1, places, new[:, places])

    def replace(
        self, hook_value: Tensor, acts_btd: Float[Tensor, "batch token d_out"] | float
    ) -> Tensor:
        """What a hook holds, with the SAE's tokens replaced and all others as they were.

        Args:
            hook_value: ``[batch, token, …]``, or ``[batch, d]`` of a pooled hook.
            acts_btd: what to put there, heads flattened; or one number, such as 0, for all.
        """
        return self.source.replace(self.model.cfg, hook_value, acts_btd)

    def fwd_hooks(
        self, edit: AnyEdit | None = None, *, use_error_term: bool = False, where: Where = "all"
    ) -> list[tuple[str, Callable[..., Any]]]:
        """Hooks for ``run_with_hooks`` that splice the SAE in; several SAEs' lists can be added.

        Args:
            edit, use_error_term, where: as ``reconstruct`` takes them.
        """
        if isinstance(edit, (LatentEdit, EditsInOrder)):
            edit = edit.on(self.layout, self.d_sae)  # before the pass, which can't hold another
        read: list[Tensor] = []

        def capture(value: Tensor, hook: Any = None) -> None:
            read[:] = [self.source.select(self.model.cfg, value)]

        def put_back(value: Tensor, hook: Any = None) -> Tensor:
            target = self.source.select(self.model.cfg, value)
            acts_btd = read.pop() if self.is_transcoder else target
            new = self.reconstruct(acts_btd, edit, use_error_term=use_error_term, target_btd=target)
            return self.replace(value, new)

        hooks: list[tuple[str, Callable[..., Any]]] = [(self.hook_name_out, put_back)]
        return [(self.source.hook_name, capture), *hooks] if self.is_transcoder else hooks

    def splice(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        edit: AnyEdit | None = None,
        *,
        use_error_term: bool = False,
        where: Where = "all",
    ) -> Float[Tensor, "batch d_embed"]:
        """The model's output with the SAE's reconstruction in place of what it reads.

        Args:
            pixels: preprocessed images.
            edit, use_error_term, where: as ``reconstruct`` takes them.
        """
        hooks = self.fwd_hooks(edit, use_error_term=use_error_term, where=where)
        return self.model.run_with_hooks(pixels, fwd_hooks=hooks)

    def run_with_acts(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        acts_btd: Float[Tensor, "batch token d_out"] | float,
    ) -> Float[Tensor, "batch d_embed"]:
        """The model's output with given activations, or one number, where the SAE writes."""

        def put(value: Tensor, hook: Any = None) -> Tensor:
            return self.replace(value, acts_btd)

        return self.model.run_with_hooks(pixels, fwd_hooks=[(self.hook_name_out, put)])

    def __repr__(self) -> str:
        return (
            f"AttachedSAE({self.sae.cfg.architecture()}, {self.d_sae} latents, on "
            f"{self.source.token_kind} tokens of {self.source.hook_name} of "
            f"{self.model.model_name})"
        )


def splice_all(
    pixels: Float[Tensor, "batch 3 height width"],
    edits: Mapping[AttachedSAE, AnyEdit | None],
    *,
    use_error_term: bool = False,
    where: Where = "all",
) -> Float[Tensor, "batch d_embed"]:
    """The model's output with several of its SAEs spliced in, each with its edit.

    Args:
        pixels: preprocessed images.
        edits: attached SAE → edit, or None for its plain reconstruction.
        use_error_term, where: as ``AttachedSAE.reconstruct`` takes them.

    Raises:
        ValueError: there are no SAEs, or they are on different models.
    """
    models = {id(attached.model): attached.model for attached in edits}
    if len(models) != 1:
        raise ValueError(f"the SAEs are on {len(models)} models; want SAEs on one model")
    hooks = [
        hook
        for attached, edit in edits.items()
        for hook in attached.fwd_hooks(edit, use_error_term=use_error_term, where=where)
    ]
    (model,) = models.values()
    return model.run_with_hooks(pixels, fwd_hooks=hooks)


def _source_in_metadata(model: HookedViT, sae: SAE[Any]) -> ActivationSource:
    metadata = sae.cfg.metadata
    if metadata.model_class_name in (None, MODEL_CLASS_NAME) and metadata.hook_name is None:
        raise ValueError(
            "this SAE's metadata name no hook, so there is no telling what it reads; set "
            "sae.cfg.metadata.hook_name, or pass source=ActivationSource.from_model(model, …)"
        )
    if metadata.model_class_name is None:
        return ActivationSource.from_model(model, metadata.hook_name)
    return ActivationSource.from_metadata(metadata)
