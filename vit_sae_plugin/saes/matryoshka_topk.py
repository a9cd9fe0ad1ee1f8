"""MSAE: one SAE that reconstructs at every sparsity (Zaigrajew et al., ICML 2025, 2502.20578)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from sae_lens.saes.sae import SAE, SAEConfig
from torch import Tensor, nn
from typing_extensions import override

from .image_aggregation import MEAN_RULE, ImageAggregationMixin, check_rule

# Both keep a batch's statistics only until its first decoding, and here one batch of latents is
# decoded at several k.
_FORBIDDEN_NORMALIZATIONS = ("layer_norm", "constant_norm_rescale")
_EQUAL_NORMS_TOLERANCE = 1e-4


@dataclass
class MatryoshkaTopKSAEConfig(SAEConfig):
    """A Matryoshka TopK SAE for inference: SAELens's fields and three of its own."""

    k: int | None = None
    """How many latents ``encode`` keeps unless told otherwise. None: all that are positive."""

    soft_cap: float | None = None
    """``c`` of ``c · tanh(h / c)``, through which latents pass. None: none."""

    aggregation: dict[str, Any] = field(default_factory=lambda: dict(MEAN_RULE))
    """How ``encode_image`` turns patch latents into image latents: ``"name"`` and settings, as
    ``vit_sae_plugin.aggregation.make_aggregation`` takes them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.aggregation = check_rule(self.aggregation)
        check_inference_settings(self, self.k, self.soft_cap)

    @override
    @classmethod
    def architecture(cls) -> str:
        return "matryoshka_topk"


class MatryoshkaTopKSAE(ImageAggregationMixin, SAE[MatryoshkaTopKSAEConfig]):
    """``h_k = ReLU(TopK_k((x − b_dec) W_enc + b_enc))``, ``x̂_k = h_k W_dec + b_dec``, at any k.

    ``export_as_topk(sae, k=…)`` and ``export_as_standard(sae)`` make plain SAELens SAEs of it.
    """

    b_enc: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))

    @override
    def encode(
        self, x: Float[Tensor, "*batch d_in"], k: int | None = None
    ) -> Float[Tensor, "*batch d_sae"]:
        """The latents of ``x``.

        Args:
            x: what the SAE reads.
            k: how many of the largest latents to keep; ``d_sae`` keeps all that are positive.
                None: what the config says.

        Raises:
            ValueError: ``k`` does not lie between 1 and ``d_sae``.
        """
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        k = self.cfg.k if k is None else k
        return self.hook_sae_acts_post(keep_largest(hidden_pre, k, self.cfg.soft_cap))

    @override
    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        sae_out = self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(sae_out), self.d_head)

    @override
    def fold_W_dec_norm(self) -> None:
        """Scale decoder rows to norm 1, if all have the same norm.

        Raises:
            ValueError: the norms differ: folding them would change which latents are the top k.
        """
        refuse_unequal_norms(self.W_dec)
        super().fold_W_dec_norm()


def keep_largest(
    hidden_pre: Float[Tensor, "*batch d_sae"], k: int | None, soft_cap: float | None
) -> Float[Tensor, "*batch d_sae"]:
    """``ReLU(TopK_k(h))``, then ``c · tanh(h / c)`` if there is a cap; ``k`` None keeps all.

    Raises:
        ValueError: ``k`` does not lie between 1 and ``d_sae``.
    """
    acts = hidden_pre.relu()
    if k is not None:
        _check_k(k, hidden_pre.shape[-1])
        if k < hidden_pre.shape[-1]:
            values, latents = acts.topk(k, dim=-1, sorted=False)
            acts = torch.zeros_like(acts).scatter(-1, latents, values)
    return cap_softly(acts, soft_cap)


def cap_softly(acts: Float[Tensor, "*batch d_sae"], soft_cap: float | None) -> Tensor:
    """``c · tanh(h / c)``, or ``h`` where ``c`` is None."""
    return acts if soft_cap is None else soft_cap * (acts / soft_cap).tanh()


def refuse_unequal_norms(W_dec: Float[Tensor, "d_sae d_in"]) -> None:
    """Raise ValueError unless all rows of the decoder have one norm."""
    norms = W_dec.norm(dim=-1)
    smallest, largest = norms.min().item(), norms.max().item()
    if largest - smallest > _EQUAL_NORMS_TOLERANCE * largest:
        raise ValueError(
            f"decoder norms between {smallest:.6g} and {largest:.6g} can't be folded into the "
            f"encoder: that would change which latents are the largest k; want equal norms"
        )


def _check_k(k: int, d_sae: int) -> None:
    if not 1 <= k <= d_sae:
        raise ValueError(f"k is {k}; want 1 to {d_sae}, which keeps all positive latents")


def check_inference_settings(cfg: SAEConfig, k: int | None, soft_cap: float | None) -> None:
    """Raise ValueError if an SAE for use at any k can't have these settings."""
    if k is not None:
        _check_k(k, cfg.d_sae)
    if soft_cap is not None and not 0 < soft_cap < float("inf"):
        raise ValueError(f"soft_cap is {soft_cap}; want a finite number above 0, or None: no cap")
    if cfg.normalize_activations in _FORBIDDEN_NORMALIZATIONS:
        raise ValueError(
            f"normalize_activations is {cfg.normalize_activations!r}; want 'none', "
            f"'expected_average_only_in' or 'covariance_whitening', which keep more than one "
            f"batch's statistics: this architecture decodes at several k"
        )
