"""Which latents are dead, asked of a device without waiting for it where that can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor


@dataclass
class BoundedStepInput(TrainStepInput):
    """The input of a training step, from a trainer that knows without waiting for the device how
    many latents may be dead."""

    n_dead_at_most: int | None = None
    """No more latents than that are dead; None: that isn't known."""


def n_dead_at_most(step_input: TrainStepInput) -> int | None:
    """What a trainer knows of it; None while compiling, where each number would be a graph."""
    if torch.compiler.is_compiling():
        return None
    return getattr(step_input, "n_dead_at_most", None)


class DeadLatents(NamedTuple):
    """The dead latents, perhaps with some living ones after them."""

    latents: Int[Tensor, " n"]
    """Their indices, each once."""
    is_dead: Bool[Tensor, " n"] | None
    """Which of these are dead; None: all."""

    @classmethod
    def of(cls, dead_neuron_mask: Bool[Tensor, " d_sae"], at_most: int | None) -> DeadLatents:
        """The latents of a mask.

        Args:
            dead_neuron_mask: True where a latent is dead.
            at_most: a number of latents that is no less than the mask's. Then a device isn't waited
                for. None: it is counted, for which the process waits.
        """
        if at_most is None:
            return cls(dead_neuron_mask.nonzero().squeeze(-1), None)
        dead_first = dead_neuron_mask.to(torch.uint8).argsort(descending=True, stable=True)
        latents = dead_first[:at_most]
        return cls(latents, dead_neuron_mask[latents])
