"""In how many rows of a training batch each latent fired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor


@dataclass
class CountedStepOutput(TrainStepOutput):
    """The output of a training step that has counted firing latents on its way."""

    n_fired: Tensor | None = None
    """``[d_sae]``: in how many rows each latent fired; None: not counted."""


class LateStepOutput(CountedStepOutput):
    """A step's output whose ``feature_acts`` are made when they are first asked for.

    A trainer that doesn't ask then needs no ``[rows, d_sae]`` buffer for them.

    Args:
        make_feature_acts: makes them; None if they are among the fields, as ``dataclasses.replace``
            has it.
        fields: all others.
    """

    def __init__(
        self, make_feature_acts: Callable[[], Tensor] | None = None, **fields: Any
    ) -> None:
        self._make_feature_acts = make_feature_acts
        for name, value in ({"metrics": {}, "n_fired": None} | fields).items():
            setattr(self, name, value)

    @cached_property
    def feature_acts(self) -> Tensor:  # type: ignore[override]
        """The latents."""
        if self._make_feature_acts is None:
            raise AttributeError("feature_acts: neither given nor to be made")
        return self._make_feature_acts()


@torch.no_grad()
def firing_counts(output: TrainStepOutput) -> Float[Tensor, " d_sae"]:
    """What the step has counted, or else a count of its latents other than zero."""
    if isinstance(output, CountedStepOutput) and output.n_fired is not None:
        return output.n_fired
    # bool() also works on sparse tensors, in which some architectures give their latents
    n_fired = output.feature_acts.bool().float().sum(0)
    return n_fired.to_dense() if n_fired.is_sparse else n_fired
