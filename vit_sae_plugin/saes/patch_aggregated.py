"""Any SAELens SAE, with a rule that turns its patch latents into image latents."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAE, SAEConfig, TrainingSAE
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from typing_extensions import override

from vit_sae_plugin.aggregation import AggregationRule

from .image_aggregation import COUNT_RULE, ImageAggregationMixin, check_rule

_SHARED = [f.name for f in fields(SAEConfig)]


@dataclass
class PatchAggregatedSAEConfig(SAEConfig):
    """An SAE of any architecture and an aggregation rule.

    SAELens's own fields (``d_in``, ``normalize_activations``, …) repeat those of the SAE inside.
    """

    base: dict[str, Any] = field(default_factory=lambda: {"architecture": "standard"})
    """Architecture of the SAE inside, and the settings that only this architecture has."""

    aggregation: dict[str, Any] = field(default_factory=lambda: dict(COUNT_RULE))
    """How patch latents become image latents: ``"name"`` and settings, as
    ``vit_sae_plugin.aggregation.make_aggregation`` takes them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.aggregation = check_rule(self.aggregation)
        architecture = self.base.get("architecture")
        if architecture not in SAE_CLASS_REGISTRY or architecture == self.architecture():
            known = ", ".join(sorted(set(SAE_CLASS_REGISTRY) - {self.architecture()}))
            raise ValueError(
                f"base['architecture'] is {architecture!r}; want one that SAELens has registered: "
                f"{known}"
            )

    @override
    @classmethod
    def architecture(cls) -> str:
        return "patch_aggregated"


class PatchAggregatedSAE(ImageAggregationMixin, SAE[PatchAggregatedSAEConfig]):
    """Wraps an SAE, whose outputs it gives unchanged, and adds ``encode_image``.

    Make one with ``from_sae``; ``sae.base`` is the SAE inside. Its hooks fire as
    ``hook_sae_input``, ``hook_sae_acts_post``, ``hook_sae_recons`` and ``hook_sae_output``; what
    an architecture does between (``hook_sae_acts_pre``) is reached through ``sae.base``.
    """

    base: SAE[Any]

    @classmethod
    def from_sae(cls, sae: SAE[Any], aggregation: AggregationRule = "count") -> PatchAggregatedSAE:
        """Lift an SAE. Its weights are shared, not copied (a training SAE's are copied).

        Args:
            sae: of any SAELens architecture, trained or in training.
            aggregation: a registered name, a mapping with ``"name"`` and settings, or a module.

        Raises:
            ValueError: the aggregation is unknown.
        """
        if isinstance(sae, TrainingSAE):
            sae = _for_inference(sae)
        if isinstance(sae, PatchAggregatedSAE):
            sae = sae.base
        shared = {name: getattr(sae.cfg, name) for name in _SHARED}
        # built without memory: the weights are the given SAE's
        shared |= {"device": "meta", "metadata": deepcopy(sae.cfg.metadata)}
        lifted = cls(
            PatchAggregatedSAEConfig(
                **shared, base=_own_settings(sae), aggregation=check_rule(aggregation)
            )
        )
        lifted.base = sae
        lifted.cfg.device, lifted.device = sae.cfg.device, sae.device
        lifted.setup()
        return lifted

    @override
    def initialize_weights(self) -> None:
        """Build the SAE inside."""
        shared = {name: getattr(self.cfg, name) for name in _SHARED}
        metadata = self.cfg.metadata.to_dict()
        # SAELens warns about these for each SAE made; the one outside has done so
        metadata.pop("model_from_pretrained_kwargs", None)
        self.base = SAE.from_dict({**shared, **self.cfg.base, "metadata": metadata})

    @override
    def setup(self) -> None:
        super().setup()
        # SAELens splices and silences an SAE's hooks by these names: only our own
        self.hook_dict: dict[str, HookPoint] = {
            name: point
            for name, point in self.hook_dict.items()
            if "." not in name and name != "hook_sae_acts_pre"
        }

    @override
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Patch latents: those of the SAE inside."""
        return self.hook_sae_acts_post(self.base.encode(self.hook_sae_input(x)))

    @override
    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        return self.hook_sae_recons(self.base.decode(feature_acts))

    @override
    def to(self, *args: Any, **kwargs: Any) -> PatchAggregatedSAE:  # type: ignore[override]
        self.base.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    @property
    def W_enc(self) -> nn.Parameter:  # type: ignore[override]
        return self.base.W_enc

    @property
    def W_dec(self) -> nn.Parameter:  # type: ignore[override]
        return self.base.W_dec

    @property
    def b_dec(self) -> nn.Parameter:  # type: ignore[override]
        return self.base.b_dec

    @property
    def b_enc(self) -> nn.Parameter:
        return self.base.b_enc

    @override
    def fold_W_dec_norm(self) -> None:
        self.base.fold_W_dec_norm()
        self._adopt_settings()

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        self.base.fold_activation_norm_scaling_factor(scaling_factor)
        self._adopt_settings()

    @override
    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        self.base.fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
        self._adopt_settings()

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        inner = _without_prefix(state_dict)
        self.base.process_state_dict_for_saving(inner)
        _replace(state_dict, inner)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        inner = _without_prefix(state_dict)
        self.base.process_state_dict_for_loading(inner)
        _replace(state_dict, inner)

    def _adopt_settings(self) -> None:
        self.cfg.base = _own_settings(self.base)
        self.cfg.normalize_activations = self.base.cfg.normalize_activations


def _own_settings(sae: SAE[Any]) -> dict[str, Any]:
    settings = sae.cfg.to_dict()
    return {name: value for name, value in settings.items() if name not in _SHARED}


@torch.no_grad()
def _for_inference(sae: TrainingSAE[Any]) -> SAE[Any]:
    config = sae.cfg.get_inference_sae_cfg_dict()
    weights = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(weights)
    plain = SAE.from_dict({**config, "device": "meta"})
    plain.process_state_dict_for_loading(weights)
    plain.load_state_dict(weights, assign=True)
    return plain.to(device=sae.W_dec.device, dtype=sae.W_dec.dtype)


def _without_prefix(state_dict: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("base."): tensor for name, tensor in state_dict.items()}


def _replace(state_dict: dict[str, Any], inner: dict[str, Any]) -> None:
    state_dict.clear()
    state_dict.update({f"base.{name}": tensor for name, tensor in inner.items()})
