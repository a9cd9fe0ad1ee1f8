"""Is training still finite? Asked of each step, without waiting for a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vit_sae_plugin.training.late_numbers import LateNumbers


class DivergedError(RuntimeError):
    """The loss or the gradient is no longer finite."""


@dataclass(frozen=True)
class _Figures:
    step: int
    values: LateNumbers
    """The step's loss, its gradient's norm, and 1 if its activations are finite."""


class DivergenceWatch:
    """Looks at each step's loss and gradient: on a CPU at once, on a GPU one step late.

    A step is launched on a GPU long before it is done; to look at its loss at once would leave the
    GPU without work until the next is launched. So the figures are copied beside the work, and
    looked at when the next step has been launched, or by ``settle`` when they must be known.

    Args:
        last_checkpoint: the checkpoint that the error's message names.
    """

    def __init__(self, last_checkpoint: Callable[[], Path | None] = lambda: None) -> None:
        self._last_checkpoint = last_checkpoint
        self._noted: _Figures | None = None

    def note(self, step: int, loss: Tensor, grad_norm: Tensor, inputs_are_finite: Tensor) -> None:
        """Take down a step's figures, and look at those whose time has come.

        Raises:
            DivergedError: a loss or a gradient's norm is not finite.
        """
        figures = _take_down(step, loss, grad_norm, inputs_are_finite)
        before, self._noted = self._noted, figures
        self._look_at(before)
        if not self._is_late(loss.device):
            self.settle()

    def settle(self) -> None:
        """Look at the figures of the last step, if that hasn't been done.

        Raises:
            DivergedError: as ``note``.
        """
        noted, self._noted = self._noted, None
        self._look_at(noted)

    @staticmethod
    def _is_late(device: torch.device) -> bool:
        return device.type != "cpu"

    def _look_at(self, figures: _Figures | None) -> None:
        if figures is None:
            return
        loss, grad_norm, inputs_are_finite = figures.values.wait()
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        cause = (
            "the activations are finite; a smaller lr or clip_grad_norm may help"
            if inputs_are_finite
            else "the activations aren't finite; a 16-bit model may have overflowed"
        )
        raise DivergedError(
            f"the loss is {loss} and the gradient's norm {grad_norm} at step {figures.step}: "
            f"{cause} (last good checkpoint: {self._last_checkpoint() or 'none'})"
        )


def _take_down(step: int, *figures: Tensor) -> _Figures:
    values = torch.stack([figure.detach().float().to(figures[0].device) for figure in figures])
    return _Figures(step, LateNumbers.send(values))
