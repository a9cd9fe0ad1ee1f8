"""Which device something runs on unless the user names one."""

from __future__ import annotations

import os

import torch


def best_device() -> str:
    """The fastest kind of device that this machine has: ``"cuda"``, ``"mps"`` or ``"cpu"``.

    Of several processes that ``torchrun`` has started on this machine each has a CUDA device of its
    own, such as ``"cuda:1"``.
    """
    if torch.cuda.is_available():
        return device_of_rank("cuda")
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_of_rank(device: str) -> str:
    """The device that one of several processes under ``torchrun`` takes where all are told one.

    Any CUDA device becomes the one with the process's number on its machine; others are as they
    are, and so are all where there is only one process.

    Raises:
        ValueError: this machine has fewer CUDA devices than such processes.
    """
    if not device.startswith("cuda") or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    n_devices = torch.cuda.device_count()
    if local_rank >= n_devices:
        raise ValueError(
            f"this is process {local_rank} (from 0) on a machine with {n_devices} CUDA devices; "
            "want one device a process: a smaller --nproc-per-node, or --device cpu"
        )
    return f"cuda:{local_rank}"
