"""``HookedViT``: a vision transformer you already have, with TransformerLens's hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from vit_sae_plugin.hooked_vit.config import HookedViTConfig
from vit_sae_plugin.hooked_vit.hook_tree import missing_reasons, place_hook_tree, plant_hook_tree
from vit_sae_plugin.hooked_vit.text_tower import TextTower
from vit_sae_plugin.hooked_vit.tower_description import TowerDescription
from vit_sae_plugin.hooked_vit.tower_facts import block_paths, check_tower, read_config, tower_dtype
from vit_sae_plugin.hooked_vit.tower_pass import TowerPass
from vit_sae_plugin.hooked_vit.weight_views import StackedWeights


class HookedViT(TextTower, StackedWeights, TowerPass):
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
                ``"hf:org/name"`` or ``"hf:folder"`` (transformers), ``"timm:name"``, or the
                folder of a model that ``vit-sae adapt`` made.
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
        from vit_sae_plugin.model_loaders import full_name

        model_name = full_name(model_name)
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
            tower=loaded.tower,
            preprocess=loaded.preprocess,
            tokenizer=loaded.tokenizer,
            model_name=model_name,
            from_pretrained_kwargs=recorded_kwargs(
                model_name, loaded.pretrained, dtype, {**kwargs, **loaded.recorded}
            ),
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
                f"{hook_name!r} holds {short.removeprefix('hook_')}; want vectors of one width: "
                "SAEs train on the residual stream, the MLP, or q, k, v, z and result"
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
