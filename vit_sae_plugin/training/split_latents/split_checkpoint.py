"""Weights and training state of a split SAE on disk, by PyTorch's distributed checkpoint.

Each process writes a safetensors file with its part of every tensor (there is no pickle), and where
in the whole it lies; so any other number of processes, each reading what is its own then, can go
on. What isn't of single latents is the same on all processes and lies beside.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME, TRAINER_STATE_FILENAME
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)

from vit_sae_plugin.training.checkpoints import SHARD_FILES
from vit_sae_plugin.training.ranks.process_group import RankLostError

from .latent_split import LATENT_DIMENSION, LatentSplit

_COUNTERS = ("act_freq_scores", "n_forward_passes_since_fired")
_NUMBERS = (
    "n_training_samples",
    "n_training_steps",
    "n_frac_active_samples",
    "started_fine_tuning",
)


def save_split(trainer: SAETrainer[Any, Any], split: LatentSplit, folder: Path) -> None:
    """Write weights and training state into a folder, on a disk that all processes see.

    Every process must call it: each writes its part, and the first one the rest.

    Args:
        trainer: of an SAE that holds this process's latents.
        split: which they are.
        folder: where to.

    Raises:
        RankLostError: another process couldn't write its part. Where this one couldn't, its own
            error is raised.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _failing_together(split):
        dcp.save(_shards(trainer, split), storage_writer=writer, **_processes(split))
    if split.is_first:
        _save_rest(trainer, folder)


def load_split(trainer: SAETrainer[Any, Any], split: LatentSplit, folder: Path) -> None:
    """Read what ``save_split`` wrote, by whatever number of processes.

    Every process must call it; one alone may too, with a trainer of the whole SAE. Parameters stay
    where they are in memory.

    Raises:
        ValueError: a trainer of whole SAEs wrote the checkpoint.
    """
    if not any(folder.glob(SHARD_FILES)):
        raise ValueError(
            f"checkpoint {folder} has the latents in one piece; want n_latent_shards=1 to go on "
            "from it"
        )
    trainer.activation_scaler.load(folder / ACTIVATION_SCALER_CFG_FILENAME)
    state = torch.load(
        folder / TRAINER_STATE_FILENAME, map_location=trainer.cfg.device, weights_only=True
    )
    for name in _NUMBERS:
        setattr(trainer, name, state[name])
    trainer.lr_scheduler.load_state_dict(state["lr_scheduler"])
    for name, scheduler_state in state["coefficient_schedulers"].items():
        trainer.coefficient_schedulers[name].load_state_dict(scheduler_state)
    parameters = list(trainer.sae.parameters())
    optimizer_state = {
        number: {
            **state["optimizer_counters"][number],
            **{name: torch.zeros_like(parameters[number]) for name in moments},
        }
        for number, moments in state["optimizer_moments"].items()
    }
    trainer.optimizer.load_state_dict(
        {"state": optimizer_state, "param_groups": state["param_groups"]}
    )
    reader = HuggingFaceStorageReader(str(folder))
    with _failing_together(split):
        dcp.load(_shards(trainer, split), storage_reader=reader, **_processes(split))


def _save_rest(trainer: SAETrainer[Any, Any], folder: Path) -> None:
    optimizer = trainer.optimizer.state_dict()
    schedulers = trainer.coefficient_schedulers.items()
    torch.save(
        {
            **{name: getattr(trainer, name) for name in _NUMBERS},
            "lr_scheduler": trainer.lr_scheduler.state_dict(),
            "coefficient_schedulers": {name: each.state_dict() for name, each in schedulers},
            "param_groups": optimizer["param_groups"],
            "optimizer_counters": {
                number: {name: value for name, value in entries.items() if _is_counter(value)}
                for number, entries in optimizer["state"].items()
            },
            "optimizer_moments": {
                number: [name for name, value in entries.items() if not _is_counter(value)]
                for number, entries in optimizer["state"].items()
            },
        },
        folder / TRAINER_STATE_FILENAME,
    )
    trainer.activation_scaler.save(str(folder / ACTIVATION_SCALER_CFG_FILENAME))


def _shards(trainer: SAETrainer[Any, Any], split: LatentSplit) -> dict[str, Tensor]:
    """All tensors by name, as ``DTensor``s that share the trainer's memory."""
    shards = {
        f"sae.{name}": split.as_global(tensor, LATENT_DIMENSION.get(name))
        for name, tensor in trainer.sae.state_dict().items()
    }
    for name, parameter in trainer.sae.named_parameters():
        for entry, value in trainer.optimizer.state.get(parameter, {}).items():
            if not _is_counter(value):
                dimension = LATENT_DIMENSION.get(name)
                shards[f"optimizer.{name}.{entry}"] = split.as_global(value, dimension)
    for name in _COUNTERS:
        shards[f"trainer.{name}"] = split.as_global(getattr(trainer, name), 0)
    return shards


def _is_counter(value: Any) -> bool:
    """Whether an entry of the optimizer's state is one number, not one for each weight."""
    return not isinstance(value, Tensor) or value.ndim == 0


def _processes(split: LatentSplit) -> dict[str, Any]:
    """How a distributed checkpoint is told who takes part."""
    return {"no_dist": True} if split.mesh is None else {"process_group": split.mesh.get_group()}


@contextmanager
def _failing_together(split: LatentSplit) -> Iterator[None]:
    """The time of a distributed checkpoint: what fails in one process fails in all."""
    try:
        with split.together(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except CheckpointException as error:  # no Exception, and its text is a traceback of each
        rank, (failure, _) = min(error.failures.items(), key=lambda each: each[0] != split.shard)
        raise failure if rank == split.shard else RankLostError.stopped(rank, failure) from error
