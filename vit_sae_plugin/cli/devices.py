"""Which device a command runs on."""

from __future__ import annotations


def chosen_device(name: str | None) -> str:
    """The device asked for, or the best this machine has."""
    import torch

    if name is not None:
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
