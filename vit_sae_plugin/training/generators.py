"""The random generators of this process: their states as tensors, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def generator_states() -> dict[str, Tensor]:
    """States of torch's global generators, by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_generators(states: dict[str, Tensor]) -> None:
    """Put them where they were; devices that this machine doesn't have are passed over."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available() and int(device[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, device)


@contextmanager
def drawing_from(states: dict[str, Tensor]) -> Iterator[None]:
    """Within, random numbers go on from ``states``, which then say where they have got to; outside
    they go on as if nothing had been drawn."""
    outside = generator_states()
    restore_generators(states)
    try:
        yield
    finally:
        states.update(generator_states())
        restore_generators(outside)
