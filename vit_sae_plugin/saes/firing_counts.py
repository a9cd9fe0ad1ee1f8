"""In how many rows of a training batch each latent fired."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor


@dataclass
class CountedStepOutput(TrainStepOutput):
    """The output of a training step that has counted firing latents on its way."""

    n_fired: Tensor | None = None
    """``[d_sae]``: in how many rows each latent fired; None: not counted."""


@torch.no_grad()
def firing_counts(output: TrainStepOutput) -> Float[Tensor, " d_sae"]:
    """What the step has counted, or else a count of its latents other than zero."""
    if isinstance(output, CountedStepOutput) and output.n_fired is not None:
        return output.n_fired
    # bool() also works on sparse tensors, in which some architectures give their latents
    n_fired = output.feature_acts.bool().float().sum(0)
    return n_fired.to_dense() if n_fired.is_sparse else n_fired
