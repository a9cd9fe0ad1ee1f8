"""Which device something runs on unless the user names one."""

from __future__ import annotations

import torch


def best_device() -> str:
    """The fastest kind of device that this machine has: ``"cuda"``, ``"mps"`` or ``"cpu"``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
