"""What a run must see to that several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vit_sae_plugin.devices import device_of_rank
from vit_sae_plugin.training.checkpoints import CheckpointFolder
from vit_sae_plugin.training.interruption import TrainingInterruptedError
from vit_sae_plugin.training.ranks.process_group import RankLostError, Ranks
from vit_sae_plugin.training.ranks.shared_batches import check_can_share_batches
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig


def config_of_rank(cfg: ViTSAERunnerConfig, ranks: Ranks) -> ViTSAERunnerConfig:
    """The settings of one of the processes: its own device, and only the first speaks.

    Raises:
        ValueError: several processes can't train such an SAE.
    """
    check_can_share_batches(cfg.sae)
    devices: dict[str, Any] = {
        name: device_of_rank(device)
        for name in ("device", "model_device", "act_store_device")
        if (device := getattr(cfg, name)) is not None
    }
    return replace(cfg, **devices, verbose=cfg.verbose and ranks.is_first)


@contextmanager
def connected(
    ranks: Ranks, checkpoints: CheckpointFolder | None, how_to_resume: str
) -> Iterator[None]:
    """The time of a run. The processes are together when it begins, and part when it ends.

    Args:
        ranks: the processes.
        checkpoints: the run's, for the message if a process is lost.
        how_to_resume: for the same.

    Raises:
        RankLostError: one of them has ended; it says what is saved, and how to go on.
    """
    try:
        ranks.wait_for_all()  # all have looked at the run's folder before one writes there
        yield
        ranks.wait_for_all()  # one may have failed to save what all have trained
    except RankLostError as lost:
        ranks.close(lost)
        saved = None if checkpoints is None else checkpoints.newest()
        kept = "nothing was saved" if saved is None else f"the last checkpoint is {saved}"
        raise RankLostError(f"{lost}; {kept}. {how_to_resume}") from lost
    except TrainingInterruptedError:
        ranks.close()  # all have agreed on it
        raise
    except BaseException as error:
        ranks.close(error)
        raise
    ranks.close()


def path_from_first(ranks: Ranks, path: Path | None) -> Path | None:
    """The path that rank 0 has, in all processes.

    Raises:
        FileNotFoundError: it can't be seen from here.
    """
    told = ranks.from_first(None if path is None else str(path.resolve()))
    if told is None:
        return None
    if not Path(told).exists():
        raise FileNotFoundError(
            f"rank 0 goes on from {told}, which rank {ranks.rank} can't see; want a run's folder "
            "that all machines share"
        )
    return path or Path(told)
