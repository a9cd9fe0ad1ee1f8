"""How much memory a piece of work needs at most, beyond what was in use before it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import torch


def resident_bytes(name: str) -> int:
    """A figure of this process from Linux: ``"VmRSS"`` now, ``"VmHWM"`` at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def peak_bytes(work: Callable[[], object]) -> int:
    """Bytes that ``work`` needs at most beyond those in use before (Linux; of the GPU if used)."""
    gc.collect()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident_bytes("VmRSS")
    work()
    return resident_bytes("VmHWM") - before


def four_copies(d_in: int, d_sae: int) -> int:
    """Bytes of an SAE's weights, their gradients and Adam's two moments, in fp32."""
    return 4 * 4 * (2 * d_in * d_sae + d_in + d_sae)
