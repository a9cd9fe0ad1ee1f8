"""Errors that a user can mend, each as one line; all others are faults of this package."""

from __future__ import annotations

import errno
import pickle

_LONGEST = 800
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK_TEXTS = (
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed",
    ". unexpected pos ",  # PyTorch's writer again: "unexpected pos 704 vs 598"
)


def error_line(error: BaseException) -> str | None:
    """What went wrong and what to do, in one line; None if it is a fault of this package."""
    text = _explained(error)
    if text is None:
        return None
    line = " ".join(text.split()) or type(error).__name__
    if len(line) > _LONGEST:  # a long value is quoted: both ends of the line say more
        line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
    return line


def _explained(error: BaseException) -> str | None:
    text = str(error)
    if _is_full_disk(error):
        place = getattr(error, "filename", None)
        where = "" if place is None else f" (at {place})"
        return (
            f"the disk is full{where}: what was written before is whole; free some space, or "
            "choose another --output-path, and give the same command again (training goes on with "
            "vit-sae train --resume FOLDER)"
        )
    if _is_out_of_memory(error):
        return (
            f"memory ran out ({text.splitlines()[0] if text else 'MemoryError'}): use smaller "
            "batches (--batch-size-images; in training --set store_batch_size_images=8), fewer "
            "latents, or --device cpu"
        )
    library = type(error).__module__.partition(".")[0]
    downloads = ("httpx", "httpcore", "requests", "urllib3", "huggingface_hub")
    if library in downloads or isinstance(error, ConnectionError):
        return (
            f"a download failed ({type(error).__name__}: {text}); check the network and the name, "
            "or name a file or folder that is on this machine"
        )
    if library == "wandb":
        return f"Weights & Biases: {text} (or leave it off: logger.log_to_wandb=false)"
    if library == "safetensors":
        return f"a safetensors file can't be read ({text}): it is damaged; restore a copy of it"
    if isinstance(error, pickle.UnpicklingError):
        return (
            "a file of weights holds more than tensors, or is damaged; it was not opened, for "
            f"opening it could run code: save the weights as safetensors ({text})"
        )
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return f"{text}: choose a place that you may write to, or may read"
    if isinstance(error, (ValueError, OSError, ImportError)):
        return text
    from vit_sae_plugin.datasets import NoReadableImagesError, UnreadableImageError
    from vit_sae_plugin.datasets.worker_processes import WorkerDiedError
    from vit_sae_plugin.training import DivergedError, RankLostError

    ours: tuple[type[Exception], ...] = (NoReadableImagesError, UnreadableImageError)
    ours += (WorkerDiedError, DivergedError, RankLostError)
    return text if isinstance(error, ours) else None


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        return True
    if type(error).__module__.startswith("vit_sae_plugin"):
        return False  # it has its own say, of which the disk may be a part
    # PyTorch, safetensors and Arrow write by themselves, and say it in words only
    return any(text in str(error) for text in _FULL_DISK_TEXTS)


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
