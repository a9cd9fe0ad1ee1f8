"""Where an SAE's rows come from: a model, a hook in it, and a choice of tokens.

The same description trains an SAE, is saved in its metadata, and rebuilds its model and its input
for evaluation and analysis.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.activations.token_selection import (
    canonical_selection,
    selected_index,
    selected_positions,
)
from vit_sae_plugin.field_types import check_values
from vit_sae_plugin.fingerprints import known_model_fingerprint, short
from vit_sae_plugin.hooked_vit.hook_names import layer_of
from vit_sae_plugin.hooked_vit.loading.loaded_model import describe_weights

if TYPE_CHECKING:
    from sae_lens import SAE
    from sae_lens.saes.sae import SAEMetadata

    from vit_sae_plugin.hooked_vit import HookedViT, HookedViTConfig
    from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

MODEL_CLASS_NAME = "HookedViT"
EVERY_TOKEN: tuple[int | None, ...] = (None,)


@dataclass
class ActivationSource:
    """The model, hook and tokens that an SAE reads, as kept in its metadata.

    Made by ``from_model`` before training and by ``from_metadata`` afterwards.
    """

    hook_name: str
    """Name of the hook, such as ``"blocks.10.hook_resid_post"``."""
    token_kind: str = "all"
    """``"all"``, ``"patches"`` or ``"cls"``."""
    seqpos_slice: tuple[int | None, ...] = EVERY_TOKEN
    """Arguments of a slice of those tokens; ``(None,)`` keeps them all."""
    model_name: str | None = None
    """What ``HookedViT.from_pretrained`` takes; None for a model passed as an object."""
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    """What else ``HookedViT.from_pretrained`` takes, such as ``{"pretrained": "openai"}``."""
    n_prefix_tokens: int | None = None
    """Class and register tokens in front of the patches."""
    grid: list[int] | None = None
    """Rows and columns of patches."""
    n_tokens: int | None = None
    """Tokens of an image in the blocks."""
    image_size: list[int] | None = None
    """Pixels the model takes."""
    patch_size: list[int] | None = None
    """Pixels of a patch."""
    preprocessing: str | None = None
    """The model's preprocessing in words."""
    model_weights: str | None = None
    """The model's weights in words: ``"openai weights"``, ``"random weights"``, or ``"unknown
    weights"`` of a model passed as an object. None: the SAE was saved before this was kept."""
    model_sha256: str | None = None
    """The model's fingerprint when the SAE was trained. None: not taken."""
    input_scaling: float | None = None
    """What rows must still be multiplied by before the SAE reads them. None: nothing (a finished
    SAE holds the factor in its weights; a checkpoint in the middle of training doesn't)."""

    @classmethod
    def from_model(
        cls,
        model: HookedViT,
        hook_name: str,
        token_kind: str = "all",
        seqpos_slice: tuple[int | None, ...] = EVERY_TOKEN,
    ) -> ActivationSource:
        """Describe a hook of a model.

        Raises:
            ValueError: no such hook; a hook that holds no vectors (attention scores, patterns); a
                token kind that the model or the hook doesn't have.
        """
        model.hook_width(hook_name)  # raises for hooks that don't exist or hold no vectors
        if hook_name == "hook_image_embed" and token_kind == "patches":
            raise ValueError(
                "token_kind is 'patches', but hook_image_embed has one vector for each image; "
                "want 'all'"
            )
        cfg = model.cfg
        kind, positions = canonical_selection(cfg.tokens, token_kind, seqpos_slice)
        return cls(
            hook_name=hook_name,
            token_kind=kind,
            seqpos_slice=positions,
            model_name=None if _is_unnamed(model) else model.model_name,
            model_from_pretrained_kwargs=dict(model.from_pretrained_kwargs),
            n_prefix_tokens=cfg.n_prefix_tokens,
            grid=list(cfg.grid),
            n_tokens=cfg.n_tokens,
            image_size=list(cfg.image_size),
            patch_size=list(cfg.patch_size),
            preprocessing=describe_preprocessing(model.preprocess),
            model_weights=_weights_of(model),
        )

    def stamp(self, sae: SAE[Any], model: HookedViT) -> None:
        """Write into an SAE's metadata all that is needed to rebuild its model and input.

        Hashes the model's weights, so that the SAE isn't used on others without a warning.
        """
        described = replace(self, model_sha256=known_model_fingerprint(model)).to_metadata()
        for name, value in described.items():
            sae.cfg.metadata[name] = value

    def to_metadata(self) -> dict[str, Any]:
        """What to put into ``sae.cfg.metadata``; everything in it can be written as JSON."""
        metadata = asdict(self)
        metadata["seqpos_slice"] = list(self.seqpos_slice)
        metadata["model_class_name"] = MODEL_CLASS_NAME
        for name in ("model_weights", "model_sha256"):
            if metadata[name] is None:
                del metadata[name]
        return metadata

    @classmethod
    def from_metadata(cls, metadata: SAEMetadata | dict[str, Any]) -> ActivationSource:
        """Read the description that ``to_metadata`` left in a saved SAE.

        Raises:
            ValueError: the SAE wasn't trained on a ``HookedViT``, or names no hook; a value is of
                the wrong type.
        """
        values = metadata if isinstance(metadata, dict) else metadata.to_dict()
        class_name, hook_name = values.get("model_class_name"), values.get("hook_name")
        if class_name != MODEL_CLASS_NAME or hook_name is None:
            raise ValueError(
                f"this SAE's metadata name model class {class_name!r} and hook {hook_name!r}; "
                f"want one trained on a {MODEL_CLASS_NAME!r}"
            )
        if values.get("token_kind", "all") is None:
            raise ValueError(
                f"this SAE's metadata name {hook_name}, but not which tokens it reads; set "
                "sae.cfg.metadata.token_kind to 'all', 'patches' or 'cls'"
            )
        known: dict[str, Any] = {
            name: value
            for name in cls.__dataclass_fields__
            if (value := values.get(name)) is not None
        }
        check_values(known, cls, prefix="this SAE's metadata: ")
        scaling = known.get("input_scaling", 1.0)
        if not 0 < scaling < math.inf:
            raise ValueError(f"this SAE's metadata: input_scaling is {scaling}; want above 0")
        known["seqpos_slice"] = tuple(known.get("seqpos_slice") or EVERY_TOKEN)
        known["model_from_pretrained_kwargs"] = dict(
            known.get("model_from_pretrained_kwargs") or {}
        )
        return cls(**known)

    def load_model(self, device: str | torch.device = "cpu") -> HookedViT:
        """Load the model again.

        Warns if it now preprocesses images otherwise than when the SAE was trained.

        Raises:
            ValueError: the SAE was trained on a model object that has no name; or its metadata
                want the model loaded in a way that could run code.
        """
        if self.model_name is None:
            raise ValueError(
                "this SAE was trained on a model passed as an object, which its metadata can't "
                "rebuild; pass that model as model=HookedViT.from_module(...)"
            )
        from vit_sae_plugin.hooked_vit import HookedViT
        from vit_sae_plugin.hooked_vit.loading.recorded import complete_old_record

        settings = complete_old_record(self.model_name, self.model_from_pretrained_kwargs)
        model = HookedViT.from_recorded(self.model_name, settings, device=device)
        self.check_model(model)
        return model

    def check_model(self, model: HookedViT) -> None:
        """Raise or warn unless this model gives the activations that the SAE was trained on.

        Raises:
            ValueError: its token grid is another, or it has no such hook.
        """
        model.hook_width(self.hook_name)
        cfg = model.cfg
        theirs = (cfg.n_prefix_tokens, list(cfg.grid), cfg.n_tokens)
        ours = (self.n_prefix_tokens, self.grid, self.n_tokens)
        if None not in ours and theirs != ours:
            raise ValueError(
                f"this model has {theirs[0]} prefix tokens, grid {theirs[1]} and {theirs[2]} "
                f"tokens; want {ours[0]}, {ours[1]} and {ours[2]}, with which the SAE was trained"
            )
        preprocessing = describe_preprocessing(model.preprocess)
        if None not in (self.preprocessing, preprocessing) and preprocessing != self.preprocessing:
            warnings.warn(
                f"the SAE was trained on images preprocessed by\n{self.preprocessing}\nbut this "
                f"model preprocesses them by\n{preprocessing}",
                stacklevel=3,
            )
        self._check_weights(model)

    def _check_weights(self, model: HookedViT) -> None:
        if self.model_sha256 is None:
            return
        found = known_model_fingerprint(model)
        if found != self.model_sha256:
            theirs = ActivationSource.from_model(model, self.hook_name)
            warnings.warn(
                f"the SAE was trained on {self.describe_model()} [{short(self.model_sha256)}], but "
                f"this model is {theirs.describe_model()} [{short(found)}], with other weights or "
                "another precision: its latents need not mean the same",
                stacklevel=4,
            )

    def describe_model(self) -> str:
        """The model and its weights in words, such as ``"ViT-B-16 (openai weights)"``."""
        if self.model_name is None:
            return "a model passed as an object"
        weights = self.model_weights or describe_weights(
            self.model_name, self.model_from_pretrained_kwargs
        )
        return f"{self.model_name} ({weights})"

    @property
    def stop_at_layer(self) -> int | None:
        """The first block that need not run; None: the whole image tower runs."""
        if self._read_at in ("hook_embed", "hook_pos_embed", "hook_full_embed"):
            return 0
        layer = layer_of(self._read_at)
        return None if layer is None else layer + 1

    @property
    def _read_at(self) -> str:
        """The hook to read: what enters a block is read where the block before it ends."""
        layer = layer_of(self.hook_name)
        if layer is None or not self.hook_name.endswith(".hook_resid_pre"):
            return self.hook_name
        return "hook_full_embed" if layer == 0 else f"blocks.{layer - 1}.hook_resid_post"

    def value(self, model: HookedViT, pixels: Float[Tensor, "batch 3 height width"]) -> Tensor:
        """All that the hook holds, in the model's precision.

        Only the blocks up to the hook run, and the text tower never.

        Args:
            model: the model, on any device.
            pixels: preprocessed images; moved to the model's device and precision.
        """
        return hook_values([self], model, pixels)[0]

    def activations(
        self, model: HookedViT, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token d_in"]:
        """The selected tokens' activations, heads flattened, in the model's precision.

        A hook without a token axis (``hook_image_embed``) gives one row for each image.
        ``input_scaling`` is not applied.

        Args:
            model, pixels: as ``value`` takes them.

        Raises:
            ValueError: the hook has no token of this kind.
        """
        return self.select(model.cfg, self.value(model, pixels))

    def select(
        self, cfg: HookedViTConfig, hook_value: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch token d_in"]:
        """The selected tokens of what the hook holds, heads flattened."""
        self._check_pooled(hook_value)
        if hook_value.ndim == 2:
            return hook_value.unsqueeze(1)
        acts_btd = hook_value.flatten(start_dim=2)
        chosen = self._chosen(cfg, hook_value)
        if isinstance(chosen, Tensor):
            chosen = chosen.to(acts_btd.device)
        return acts_btd[:, chosen]

    def replace(self, cfg: HookedViTConfig, hook_value: Tensor, acts_btd: Tensor | float) -> Tensor:
        """What the hook holds, with the selected tokens replaced and all others as they were.

        Args:
            cfg: of the model.
            hook_value: ``[batch, token, ...]``, or ``[batch, d]`` of a pooled hook.
            acts_btd: what to put there, heads flattened; or one number for all of it.
        """
        self._check_pooled(hook_value)
        if isinstance(acts_btd, Tensor):
            n_tokens = () if hook_value.ndim == 2 else (acts_btd.shape[1],)
            shape = (len(hook_value), *n_tokens, *hook_value.shape[len(n_tokens) + 1 :])
            acts_btd = acts_btd.reshape(shape).to(hook_value)
        edited = hook_value.clone()
        if hook_value.ndim == 2:
            edited[:] = acts_btd
            return edited
        chosen = self._chosen(cfg, hook_value)
        edited[:, chosen.to(edited.device) if isinstance(chosen, Tensor) else chosen] = acts_btd
        return edited

    def layout(self, cfg: HookedViTConfig, hook_value: Tensor) -> TokenLayout:
        """Which of the selected tokens is what."""
        self._check_pooled(hook_value)
        at_hook = cfg.tokens.at_hook(hook_value.shape)
        if hook_value.ndim == 2:
            return at_hook
        return at_hook.select(selected_positions(at_hook, self.token_kind, self.seqpos_slice))

    def _chosen(self, cfg: HookedViTConfig, hook_value: Tensor) -> slice | Tensor:
        """The selected positions on the hook's token axis; a slice where one will do."""
        if self.token_kind == "all":
            return slice(*self.seqpos_slice)
        at_hook = cfg.tokens.at_hook(hook_value.shape)
        return selected_index(at_hook, self.token_kind, tuple(self.seqpos_slice))

    def _check_pooled(self, hook_value: Tensor) -> None:
        if hook_value.ndim == 2 and self.token_kind == "patches":
            raise ValueError(
                f"token_kind is 'patches', but {self.hook_name} has one vector for each image; "
                "want 'all'"
            )


@torch.no_grad()
def hook_values(
    sources: Sequence[ActivationSource],
    model: HookedViT,
    pixels: Float[Tensor, "batch 3 height width"],
) -> list[Tensor]:
    """All that the sources' hooks hold, from one forward pass that goes no further than it must.

    Args:
        sources: whose hooks to read, on this model.
        model: the model, on any device.
        pixels: preprocessed images; moved to the model's device and precision.
    """
    kept: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[..., None]:
        return lambda point, inputs, value: kept.__setitem__(number, value)

    last_layers = [source.stop_at_layer for source in sources]
    stop = None if None in last_layers else max(layer for layer in last_layers if layer is not None)
    # run_with_cache would visit every hook point twice, which small towers feel
    handles = [
        model.hook_dict[source._read_at].register_forward_hook(keep(number))
        for number, source in enumerate(sources)
    ]
    try:
        model(pixels.to(model.cfg.device), stop_at_layer=stop)
    finally:
        for handle in handles:
            handle.remove()
    return [kept[number] for number in range(len(sources))]


def describe_preprocessing(preprocess: Any) -> str | None:
    """A transform in words, the same in every process."""
    # functions print their address, which differs from process to process
    return None if preprocess is None else re.sub(r" at 0x[0-9a-f]+", "", str(preprocess))


def _is_unnamed(model: HookedViT) -> bool:
    """Whether ``model_name`` is only the wrapped object's class, which nothing can load."""
    kind = type(model.bare_model)
    return model.model_name == f"{kind.__module__}.{kind.__qualname__}"


def _weights_of(model: HookedViT) -> str:
    if model.has_pretrained_weights is None:
        return "unknown weights"
    return describe_weights(model.model_name, model.from_pretrained_kwargs)
