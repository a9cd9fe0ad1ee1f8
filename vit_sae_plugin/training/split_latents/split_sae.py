"""What SAEs in training have in common when each of several processes holds a range of latents.

With ``n`` rows ``x [n, d_in]``, the same on all processes, ``R`` processes and ``m = d_sae / R``
latents with each, process ``r`` computes

- ``h_r = (x − b_dec) W_enc,r + b_enc,r``, ``[n, m]``: nothing is sent;
- ``f_r = φ(h_r)``, ``[n, m]``: ReLU, or a top-k of all processes' latents (``shared_top_k``);
- ``x̂ = Σ_r f_r W_dec,r + b_dec``, ``[n, d_in]``: one sum over the processes;

and all of the loss ``L(x̂, …)``, which is the same everywhere. With ``g = ∂L/∂x̂ [n, d_in]`` then

- ``∂L/∂W_dec,r = f_rᵀ g`` and ``∂L/∂f_r = g W_dec,rᵀ``, and from there to ``W_enc,r`` and
  ``b_enc,r``: nothing is sent;
- ``∂L/∂b_dec = Σ_n g − Σ_r W_enc,r Σ_n ∂L/∂h_r``. Every process holds ``b_dec`` and has one term of
  the outer sum. ``Σ_n g`` is counted by the first process alone, so that the gradient is the sum
  over the processes of what each has, ``[d_in]``, to the bit the same on all
  (``SplitLatentsTrainer`` sums it, once a step).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Float
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
from torch import Tensor, nn
from typing_extensions import override

from vit_sae_plugin.saes.centred_encoding import encode_centred

from .initial_weights import draw_rows
from .latent_split import LatentSplit
from .sum_over_shards import sum_over_shards

if TYPE_CHECKING:
    _Base: TypeAlias = TrainingSAE[Any]
else:
    _Base = object


class SplitLatents(_Base):
    """A range of the latents of an SAE in training; stands before its architecture among the bases.

    ``cfg`` is the whole SAE's. ``W_enc``, ``b_enc`` and ``W_dec`` are this process's part, in plain
    tensors, on which every operator and optimizer runs at full speed; ``LatentSplit.as_global``
    shows them as the ``DTensor``s that they are parts of. Initial weights are those that one
    process would draw from the same generator; no process ever holds more than its part of them.

    ``encode`` gives this process's latents of the row, and ``decode`` takes them and gives the
    whole reconstruction: every process must call it.

    Args:
        cfg: the whole SAE's.
        split: which of its latents these are.
    """

    split: LatentSplit

    def __init__(self, cfg: TrainingSAEConfig, split: LatentSplit) -> None:
        object.__setattr__(self, "split", split)
        super().__init__(cfg)

    @override
    @torch.no_grad()
    def initialize_weights(self) -> None:
        cfg, own = self.cfg, self.split.own(self.cfg.d_sae)
        options = {"dtype": self.dtype, "device": self.device}
        decoder = draw_rows(cfg.d_sae, cfg.d_in, own, self.dtype).to(self.device)
        if cfg.decoder_init_norm is not None:
            decoder /= decoder.norm(dim=-1, keepdim=True)
            decoder *= cfg.decoder_init_norm
        self.W_dec = nn.Parameter(decoder)
        self.W_enc = nn.Parameter(decoder.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(torch.zeros(own.stop - own.start, **options))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in, **options))

    @property
    def own_bias(self) -> Float[Tensor, " d_in"]:
        """``b_dec``, whose gradient by way of the reconstruction the first process alone counts."""
        return self.b_dec if self.split.is_first else self.b_dec.detach()

    def pre_activations(
        self, x: Float[Tensor, "*batch d_in"], encoder: Float[Tensor, "d_in m"]
    ) -> Float[Tensor, "*batch m"]:
        """``h_r``, of which ``b_dec`` gets its gradient by a product with the encoder alone."""
        x = self.hook_sae_input(self.reshape_fn_in(x.to(self.dtype)))
        x = self.run_time_activation_norm_fn_in(x)
        b_dec = self.b_dec if self.cfg.apply_b_dec_to_input else None
        return self.hook_sae_acts_pre(encode_centred(x, encoder, self.b_enc, b_dec))

    def reconstruction(self, part: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """``x̂``, of this process's ``f_r W_dec,r``."""
        sae_out = self.hook_sae_recons(sum_over_shards(part, self.split) + self.own_bias)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(sae_out), self.d_head)

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """Raise a ValueError: a part of an SAE is none."""
        raise ValueError(
            f"this is part {self.split.shard} of an SAE whose latents are split over "
            f"{self.split.n_shards} processes; save the whole by save_whole_sae() in all of them"
        )

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Raise a ValueError: a part of an SAE is none."""
        return self.save_model(path)
