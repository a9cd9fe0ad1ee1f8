"""Numbers that come from a GPU while it and this process work on."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LateNumbers:
    """A few numbers on their way from a device."""

    values: Tensor
    arrival: torch.cuda.Event | None
    """When ``values`` have come; None: they are here."""

    @classmethod
    def send(cls, values: Tensor) -> LateNumbers:
        """Begin to copy numbers to the host, after all work that was launched before."""
        if not values.is_cuda:
            return cls(values, None)
        on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        on_host.copy_(values, non_blocking=True)
        arrival = torch.cuda.Event()
        arrival.record()
        return cls(on_host, arrival)

    def wait(self) -> list[float]:
        """The numbers, when they have come."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.values.tolist()


class DeadBound:
    """How many latents are dead at most, known without waiting for the step before.

    A latent is dead if it hasn't fired for more than ``window`` steps. Those that haven't for more
    than ``window`` − 1 are counted after each step, and looked at two steps later, when the count
    has long come: who is dead then was among them, for a step adds one to each.

    Args:
        window: of the trainer.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._sent: deque[LateNumbers] = deque(maxlen=2)

    def note(self, n_steps_since_fired: Tensor) -> None:
        """Count after a step."""
        n_soon_dead = (n_steps_since_fired > self.window - 1).sum().unsqueeze(0)
        self._sent.append(LateNumbers.send(n_soon_dead))

    def at_most(self) -> int | None:
        """The bound for the next step; None until two steps were counted."""
        return int(self._sent[0].wait()[0]) if len(self._sent) == 2 else None

    def forget(self) -> None:
        """The counters are others now."""
        self._sent.clear()
