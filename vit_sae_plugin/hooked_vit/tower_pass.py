"""A pass through a hooked tower: the whole of it, from or up to a block, or the head alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_sae_plugin.hooked_vit.class_token_only import narrow_to_token, only_token_read
from vit_sae_plugin.hooked_vit.config import HookedViTConfig
from vit_sae_plugin.hooked_vit.forward_run import (
    ForwardRun,
    StopForward,
    eager_if_compiled,
    forward_lock,
    refuse_checkpointing,
)
from vit_sae_plugin.hooked_vit.hook_names import WHOLE_PASS, Reach
from vit_sae_plugin.hooked_vit.hook_tree import is_live
from vit_sae_plugin.hooked_vit.hooked_root import StrictHookedRoot
from vit_sae_plugin.hooked_vit.model_output import select_output
from vit_sae_plugin.hooked_vit.self_check import check_every_hook, check_first_block
from vit_sae_plugin.hooked_vit.tower_description import TowerDescription
from vit_sae_plugin.hooked_vit.tower_hooks import attach_tower

if TYPE_CHECKING:
    import pandas as pd


class TowerPass(StrictHookedRoot):
    """The methods of ``HookedViT`` that run the wrapped model."""

    bare_model: nn.Module
    cfg: HookedViTConfig
    model_name: str
    tower: TowerDescription
    _block_paths: tuple[str, ...]
    _is_checked: bool
    _site_names: tuple[str, ...]

    def forward(
        self,
        pixels: Float[Tensor, "batch channel height width"] | Float[Tensor, "batch token d_model"],
        *,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        output_only: bool = False,
        **kwargs: Any,
    ) -> Float[Tensor, "..."]:
        """What the bare model returns for images: the embedding (not normalised), or class logits.

        Args:
            pixels: preprocessed images; with ``start_at_layer`` a residual stream.
            start_at_layer: go on from the residual stream ``[batch, token, d_model]`` in front of
                this block, as ``stop_at_layer`` gives it: no earlier block runs, and what they
                would have been fed is blank pixels. ``n_layers`` leaves only the head; negative
                numbers count from the end.
            stop_at_layer: return the residual stream ``[batch, token, d_model]`` in front of this
                block; no later block, and no head, is computed. ``n_layers`` stops after the last
                block; negative numbers count from the end.
            output_only: leave out what the output doesn't depend on: of the last block of a tower
                that is pooled by its class token all that is not for that token. The output is the
                same up to rounding. Where hooks look there, or tokens are pooled otherwise, it
                changes nothing.
            kwargs: passed on to the bare model.

        Raises:
            ValueError: ``pixels`` are not a batch of images (or, with ``start_at_layer``, no
                residual stream), or there is no such block.
            RuntimeError: a hook in use was not reached, or reached twice; or gradient
                checkpointing would lose the hooks.
        """
        reach = self.resolve_reach(start_at_layer, stop_at_layer)
        residual = None
        if reach.start_at_layer is None:
            pixels = self._checked_pixels(pixels)
        else:
            residual = self._checked_residual(pixels)
            if reach.stop_at_layer == reach.start_at_layer:
                return residual
            # of one image: nothing that is computed from them is used
            pixels = self.blank_pixels(1)
        points = {
            name: point
            for name in self._site_names
            if is_live(point := self.mod_dict[name]) and reach.reaches(name)
        }
        with forward_lock(self.bare_model):
            if not points and reach == WHOLE_PASS and not output_only:
                # A run of its own, for this may be called from a hook within another pass.
                with ForwardRun(self.bare_model, {}):
                    return self._bare_output(pixels, kwargs)
            if residual is None and not self._is_checked:
                self._check_description(pixels, kwargs)
            return self._hooked_output(pixels, kwargs, points, reach, residual, output_only)

    def embed_residual(
        self,
        residual: Float[Tensor, "batch token d_model"],
        *,
        per_token: bool = False,
        **kwargs: Any,
    ) -> Float[Tensor, "batch ..."]:
        """What the head makes of the residual stream behind the last block: the final norm, the
        pooling and the projection (and the classifier, where the model ends in one).

        Args:
            residual: the stream behind the last block, as ``stop_at_layer=n_layers`` gives it.
            per_token: one output a token, ``[batch, token, …]``: what the head makes of a sequence
                that holds this token alone. For CLIP that is the final norm and the projection of
                each token (the "logit lens" of its embedding space). No hooks run.
            kwargs: passed on to the bare model.

        Returns:
            ``[batch, d_embed]`` (or ``[batch, n_classes]``), equal to
            ``model(residual, start_at_layer=n_layers)``.

        Raises:
            ValueError: not a residual stream; or ``per_token`` of a model that pools otherwise than
                by its class token or by a mean.
        """
        if not per_token:
            return self(residual, start_at_layer=self.cfg.n_layers, **kwargs)
        if self.tower.pooling is None:
            raise ValueError(
                f"per_token is True, but no single token of {self.model_name!r} has an embedding: "
                f"{self.tower.pooling_missing}; want per_token=False, or a model that pools "
                "by class token or mean"
            )
        residual = self._checked_residual(residual)
        n_layers, n_tokens = self.cfg.n_layers, residual.shape[1]
        copies = 1 if self.tower.pooling == "class" else self.cfg.n_prefix_tokens + 1
        alone = residual.flatten(0, 1).unsqueeze(1).expand(-1, copies, -1)
        with forward_lock(self.bare_model):
            output = self._hooked_output(self.blank_pixels(1), kwargs, {}, Reach(n_layers), alone)
        return output.unflatten(0, (-1, n_tokens))

    def _checked_pixels(self, pixels: Any) -> Tensor:
        if not isinstance(pixels, Tensor) or pixels.ndim != 4:
            raise ValueError(
                f"pixels is {_shape_of(pixels)}; want a tensor [batch, channel, height, width] "
                "(of a PIL image: model.preprocess(image).unsqueeze(0))"
            )
        if pixels.is_floating_point() and pixels.dtype != self.cfg.dtype:
            return pixels.to(self.cfg.dtype)
        return pixels

    def _checked_residual(self, residual: Any) -> Tensor:
        width = self.cfg.d_model
        if not isinstance(residual, Tensor) or residual.ndim != 3 or residual.shape[2] != width:
            raise ValueError(
                f"the residual stream is {_shape_of(residual)}; want a tensor [batch, token, "
                f"{width}], as model(pixels, stop_at_layer=…) gives it"
            )
        return residual.to(self.cfg.dtype)

    def blank_pixels(self, n_images: int) -> Tensor:
        """Pixels to call the model with when nothing that it computes from them is used."""
        cfg = self.cfg
        tower = self.tower
        at = tower.blocks if tower.embedding is None else tower.embedding.patch_embed
        kernels = (p for p in self.bare_model.get_submodule(at).parameters() if p.ndim == 4)
        kernel = next(kernels, None)
        n_channels = 3 if kernel is None else kernel.shape[1]
        shape = (n_images, n_channels, *cfg.image_size)
        return torch.zeros(shape, device=cfg.device, dtype=cfg.dtype)

    def _check_description(self, pixels: Tensor, kwargs: dict[str, Any]) -> None:
        """Once, before the first pass with hooks that can be judged: is the description true?"""
        own_size = tuple(pixels.shape[-2:]) == tuple(self.cfg.image_size)
        if self.bare_model.training or not own_size or len(pixels) == 0:
            return
        image, first_block = pixels[:1], Reach(None, 1)
        with torch.no_grad():
            check_first_block(
                self, lambda points: self._hooked_output(image, kwargs, points, first_block, None)
            )
        self._is_checked = True

    def check(
        self,
        pixels: Float[Tensor, "batch channel height width"] | None = None,
        layers: list[int] | None = None,
    ) -> pd.DataFrame:
        """Compare every hook with a plain pass: is the tower description true?

        A table indexed by hook, with the columns ``shape``, ``added_off`` (sums of the stream),
        ``copied_off`` (the output, computed from a copy of the value), ``reaches_output`` and
        ``fine``; see ``vit_sae_plugin.hooked_vit.self_check.check_every_hook``. Two passes a
        hook.

        Args:
            pixels: preprocessed images (None: one image of noise).
            layers: blocks to check (None: all).

        Raises:
            ValueError: the model is in training mode.
        """
        return check_every_hook(self, pixels, layers)

    def _hooked_output(
        self,
        pixels: Tensor,
        kwargs: dict[str, Any],
        points: Mapping[str, Callable[[Tensor], Tensor]],
        reach: Reach,
        residual: Tensor | None,
        output_only: bool = False,
    ) -> Tensor:
        refuse_checkpointing(self.bare_model)
        with eager_if_compiled(self.bare_model), ForwardRun(self.bare_model, points) as run:
            attach_tower(run, self.tower, self._block_paths, reach, residual)
            if output_only and reach.stop_at_layer is None:
                token = only_token_read(self.bare_model, self.tower, self.cfg, run)
                if token is not None and reach.start_at_layer != self.cfg.n_layers:
                    narrow_to_token(run, self.tower, self._block_paths[-1], token)
            try:
                output = self._bare_output(pixels, kwargs)
            except StopForward as stopped:
                if stopped.run is not run:
                    raise
                output = stopped.residual
            else:
                if self.tower.classifier is None:
                    output = run.fire("hook_image_embed", output)
        if missed := run.missed():
            raise RuntimeError(
                f"the forward pass never reached {', '.join(missed[:5])}; want a tower description "
                "that names modules the model calls"
            )
        return output

    def _bare_output(self, pixels: Tensor, kwargs: dict[str, Any]) -> Tensor:
        method = self.tower.image_method
        call = self.bare_model if method is None else getattr(self.bare_model, method)
        arguments = {**self.tower.method_arguments, **kwargs}
        if self.tower.patch_order_argument is not None:
            n_patches = self.cfg.grid[0] * self.cfg.grid[1]
            order = torch.arange(n_patches, device=pixels.device).expand(len(pixels), -1)
            arguments.setdefault(self.tower.patch_order_argument, order)
        return select_output(call(pixels, **arguments), self.tower.image_output)

    def encode_image(
        self, pixels: Float[Tensor, "batch channel height width"], normalize: bool = False
    ) -> Float[Tensor, "batch d_embed"]:
        """The pooled and projected image embedding, hooks included.

        Args:
            pixels: preprocessed images.
            normalize: divide each embedding by its length.

        Raises:
            ValueError: the model ends in a classifier; its output are logits.
        """
        if self.tower.classifier is not None:
            raise ValueError(
                "this model ends in a classifier, so model(pixels) are class logits; want the hook "
                "'hook_image_embed', the pooled embedding in front of it"
            )
        embeds = self(pixels)
        return nn.functional.normalize(embeds, dim=-1) if normalize else embeds


def _shape_of(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
