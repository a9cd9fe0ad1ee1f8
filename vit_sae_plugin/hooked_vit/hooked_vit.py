"""``HookedViT``: a vision transformer you already have, with TransformerLens's hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_sae_plugin.hooked_vit.config import HookedViTConfig
from vit_sae_plugin.hooked_vit.forward_run import (
    ForwardRun,
    StopForward,
    eager_if_compiled,
    forward_lock,
    refuse_checkpointing,
)
from vit_sae_plugin.hooked_vit.hook_names import WHOLE_PASS, Reach
from vit_sae_plugin.hooked_vit.hook_tree import (
    is_live,
    missing_reasons,
    place_hook_tree,
    plant_hook_tree,
)
from vit_sae_plugin.hooked_vit.hooked_root import StrictHookedRoot
from vit_sae_plugin.hooked_vit.model_output import select_output
from vit_sae_plugin.hooked_vit.self_check import check_every_hook, check_first_block
from vit_sae_plugin.hooked_vit.text_tower import TextTower
from vit_sae_plugin.hooked_vit.tower_description import TowerDescription
from vit_sae_plugin.hooked_vit.tower_facts import block_paths, check_tower, read_config, tower_dtype
from vit_sae_plugin.hooked_vit.tower_hooks import attach_tower
from vit_sae_plugin.hooked_vit.weight_views import StackedWeights

if TYPE_CHECKING:
    import pandas as pd


class HookedViT(TextTower, StackedWeights, StrictHookedRoot):
    """A vision transformer wrapped with TransformerLens's hook points.

    The wrapped model (``model.bare_model``) is neither copied nor changed: hooks attach to its
    modules for the length of one forward pass, and only where a hook point is in use. Without
    hooks the output is bit-identical to the bare model's, and parameters and the state dict keep
    the bare model's names. Make one with ``from_pretrained`` or ``from_module``.

    Attributes:
        cfg: sizes and token layout.
        bare_model: the wrapped model.
        tower: where it keeps its parts.
        preprocess: from a PIL image to pixels ``[3, height, width]``, or None.
        tokenizer: from texts to token ids, or None.
        model_name: what ``from_pretrained`` was given, or the class of the wrapped model.
        from_pretrained_kwargs: with ``model_name``, what rebuilds this model (plain JSON data).
        has_pretrained_weights: True; False: random weights; None: wrapped as an object, unknown.
    """

    def __init__(
        self,
        module: nn.Module,
        tower: TowerDescription,
        *,
        preprocess: Callable | None = None,
        tokenizer: Callable | None = None,
        model_name: str | None = None,
        from_pretrained_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_tower(module, tower)
        self.tower = tower
        self.model_name = model_name or f"{type(module).__module__}.{type(module).__qualname__}"
        self.from_pretrained_kwargs = dict(from_pretrained_kwargs or {})
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.cfg: HookedViTConfig = read_config(module, tower, self.model_name)
        self.missing_hooks = missing_reasons(tower)
        self.bare_model = module
        self.has_pretrained_weights: bool | None = None
        self._is_checked = False
        plant_hook_tree(self, tower, self.cfg.n_layers)
        self._block_paths = block_paths(module, tower)
        place_hook_tree(self, module, tower, self._block_paths)
        self.training = module.training
        self.setup()
        self._site_names = tuple(self.hook_dict)

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        tower: TowerDescription | None = None,
        preprocess: Callable | None = None,
        tokenizer: Callable | None = None,
        model_name: str | None = None,
        from_pretrained_kwargs: dict[str, Any] | None = None,
        image_size: int | tuple[int, int] | None = None,
    ) -> Self:
        """Wrap a model object: open_clip, Hugging Face transformers, timm, or your own.

        Args:
            module: the model, or a TransformerLens ``TransformerBridge`` around one. It is not
                copied.
            tower: where a model of your own keeps its parts; known families are recognised.
            preprocess: from a PIL image to pixels ``[3, height, width]``.
            tokenizer: from a list of texts to token ids, for models with a text tower.
            model_name: recorded in ``cfg`` and in SAEs trained on this model.
            from_pretrained_kwargs: recorded likewise: with ``model_name``, what ``from_pretrained``
                needs to rebuild this model.
            image_size: height and width of the images to come, where the model accepts others
                than its own size (DINOv2).

        Raises:
            UnsupportedTowerError: the family is unknown, or a part of it cannot be hooked.
        """
        if type(module).__name__ == "TransformerBridge":
            module = module.original_model  # type: ignore[assignment]
        if tower is None:
            from vit_sae_plugin.hooked_vit.towers import describe

            tower = describe(module)
        if image_size is not None:
            tower = tower.for_image_size(image_size)
        return cls(
            module,
            tower,
            preprocess=preprocess,
            tokenizer=tokenizer,
            model_name=model_name,
            from_pretrained_kwargs=from_pretrained_kwargs,
        )

    @classmethod
    def from_pretrained(
        cls,
        model_name: str,
        *,
        pretrained: str | bool | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a model with its preprocessing and tokenizer, and wrap it, in evaluation mode.

        Args:
            model_name: an open_clip name (``"ViT-B-16"``, ``"local-dir:folder"``,
                ``"hf-hub:org/name"``), ``"shapes-clip"`` (ships with this package),
                ``"hf:org/name"`` or ``"hf:folder"`` (transformers), ``"timm:name"``.
            pretrained: open_clip's weight tag, such as ``"openai"``, or a file of weights. False:
                random weights. None or True: those the name stands for (of open_clip's: OpenAI's,
                or the only ones there are).
            device: where to put the model (None: CPU).
            dtype: number format of the weights, as ``torch.float16`` or ``"float16"`` (None: as
                loaded).
            cache_dir: where downloaded weights are kept (None: the library's own place).
            kwargs: ``init_seed`` (0) for weights that no checkpoint fills; all others are passed
                on to the library's loader.

        Raises:
            ModelNameError: the name or the weight tag is unknown (lists near names), or there are
                several weights and none was chosen.
            WeightsError: the weights cannot be read, or fetched.
            TypeError: an argument is not plain JSON data.
        """
        return cls._load(model_name, pretrained, device, dtype, cache_dir, True, kwargs)

    @classmethod
    def from_recorded(
        cls,
        model_name: str,
        from_pretrained_kwargs: Mapping[str, Any],
        *,
        device: str | torch.device | None = None,
        cache_dir: str | None = None,
    ) -> Self:
        """Load a model as a file names it (an SAE's metadata, a run's configuration), which may
        come from anyone: only plain settings are taken, no code that comes with a model runs, and
        weights are read as safetensors or with ``weights_only=True``.

        Args:
            model_name: as for ``from_pretrained``.
            from_pretrained_kwargs: the arguments that the file holds.
            device: where to put the model (None: CPU).
            cache_dir: where downloaded weights are kept (None: the library's own place).

        Raises:
            UnsafeSettingError: the file wants more than that; says how to allow it by hand.
            ModelNameError, WeightsError: as ``from_pretrained``.
        """
        from vit_sae_plugin.hooked_vit.loading import check_recorded_settings

        check_recorded_settings(model_name, from_pretrained_kwargs)
        kwargs = dict(from_pretrained_kwargs)
        pretrained, dtype = kwargs.pop("pretrained", None), kwargs.pop("dtype", None)
        return cls._load(model_name, pretrained, device, dtype, cache_dir, False, kwargs)

    @classmethod
    def _load(
        cls,
        model_name: str,
        pretrained: str | bool | None,
        device: str | torch.device | None,
        dtype: str | torch.dtype | None,
        cache_dir: str | None,
        trusted: bool,
        kwargs: dict[str, Any],
    ) -> Self:
        from vit_sae_plugin.hooked_vit.loading.by_name import load_pretrained, recorded_kwargs

        recorded_kwargs(model_name, False, dtype, kwargs)  # raises before a long download
        loaded = load_pretrained(
            model_name,
            pretrained=pretrained,
            device=device,
            dtype=dtype,
            cache_dir=cache_dir,
            trusted=trusted,
            **kwargs,
        )
        model = cls.from_module(
            loaded.module,
            preprocess=loaded.preprocess,
            tokenizer=loaded.tokenizer,
            model_name=model_name,
            from_pretrained_kwargs=recorded_kwargs(model_name, loaded.pretrained, dtype, kwargs),
            image_size=loaded.image_size,
        )
        model.has_pretrained_weights = loaded.pretrained is not False
        return model

    def hook_tree(self) -> list[tuple[str, nn.Module]]:
        """All modules of this one except the wrapped model and its parts, by name."""
        return [
            (f"{name}.{inner}" if inner else name, module)
            for name, child in self.named_children()
            if name != "bare_model"
            for inner, module in child.named_modules()
        ]

    def forward(
        self,
        pixels: Float[Tensor, "batch channel height width"] | Float[Tensor, "batch token d_model"],
        *,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
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
            pixels = self.blank_pixels(len(residual))
        points = {
            name: point
            for name in self._site_names
            if is_live(point := self.mod_dict[name]) and reach.reaches(name)
        }
        with forward_lock(self.bare_model):
            if not points and reach == WHOLE_PASS:
                # A run of its own, for this may be called from a hook within another pass.
                with ForwardRun(self.bare_model, {}):
                    return self._bare_output(pixels, kwargs)
            if residual is None and not self._is_checked:
                self._check_description(pixels, kwargs)
            return self._hooked_output(pixels, kwargs, points, reach, residual)

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
            # Blank pixels of one image will do: nothing that is computed from them is used.
            output = self._hooked_output(self.blank_pixels(1), kwargs, {}, Reach(n_layers), alone)
        return output.unflatten(0, (-1, n_tokens))

    def _checked_pixels(self, pixels: Any) -> Tensor:
        if not isinstance(pixels, Tensor) or pixels.ndim != 4:
            raise ValueError(
                f"pixels is {_shape_of(pixels)}; want a tensor [batch, channel, height, width]. "
                "For a PIL image: model.preprocess(image).unsqueeze(0)"
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
        ``fine``; see :func:`vit_sae_plugin.hooked_vit.self_check.check_every_hook`. Two passes a
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
    ) -> Tensor:
        refuse_checkpointing(self.bare_model)
        with eager_if_compiled(self.bare_model), ForwardRun(self.bare_model, points) as run:
            attach_tower(run, self.tower, self._block_paths, reach, residual)
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
                f"The forward pass never reached {', '.join(missed[:5])}: the model does not call "
                "the modules that its tower description names."
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
                "This model ends in a classifier, so model(pixels) are class logits; the pooled "
                "embedding in front of it is the hook 'hook_image_embed'."
            )
        embeds = self(pixels)
        return nn.functional.normalize(embeds, dim=-1) if normalize else embeds

    def require_preprocess(self) -> Callable[[Any], Tensor]:
        """``preprocess``: from a PIL image to pixels ``[3, height, width]``.

        Raises:
            ValueError: this model has none.
        """
        if self.preprocess is None:
            raise ValueError(
                f"{self.model_name} has no preprocessing, so images can't become pixels; pass "
                "preprocess= to HookedViT.from_module"
            )
        return self.preprocess

    def hook_width(self, hook_name: str) -> int:
        """``d_in`` of an SAE trained at a hook: its last axis, with heads flattened.

        Raises:
            HookNameError: there is no such hook.
            ValueError: the hook has no width of its own (scores, patterns, scales).
        """
        self._check_hook_names([hook_name])
        cfg = self.cfg
        short = hook_name.rsplit(".", 1)[-1]
        if short in ("hook_attn_scores", "hook_pattern", "hook_scale"):
            raise ValueError(
                f"{hook_name!r} holds {short.removeprefix('hook_')}, not vectors of one width; "
                "SAEs train on the residual stream, the MLP, or q, k, v, z and result."
            )
        per_head = {"hook_result": cfg.d_model, **dict.fromkeys(("hook_q", "hook_k"), cfg.d_head)}
        per_head |= dict.fromkeys(("hook_v", "hook_z"), cfg.d_head)
        if short in per_head:
            return cfg.n_heads * per_head[short]
        if short in ("hook_pre", "hook_post"):
            return cfg.d_mlp
        return cfg.d_embed if short == "hook_image_embed" else cfg.d_model

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The bare model's state dict."""
        return self.bare_model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load the bare model's state dict."""
        return self.bare_model.load_state_dict(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The bare model's parameters under its own names."""
        return self.bare_model.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """The bare model's buffers under its own names."""
        return self.bare_model.named_buffers(*args, **kwargs)

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        """Behind ``to``, ``half``, ``cuda``, …: also keeps ``cfg`` up to date."""
        super()._apply(fn, recurse)
        self.cfg.device, self.cfg.dtype = tower_dtype(self.bare_model, self.tower)
        return self


def _shape_of(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
