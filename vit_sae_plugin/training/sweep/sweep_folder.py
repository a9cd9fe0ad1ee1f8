"""What lies in a sweep's folder besides its members' own: who they are, and who was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_sae_plugin.atomic_files import write_text_atomically
from vit_sae_plugin.training.config_files import read, write
from vit_sae_plugin.training.run_folder import CONFIG_FILE, load_config
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig
from vit_sae_plugin.training.sweep.sweep_file import check_member_names

SWEEP_FILE = "sweep.yaml"
TABLE_FILE = "sweep.csv"
DIVERGED_FILE = "diverged.json"


def is_sweep_folder(folder: str | Path) -> bool:
    """Whether a sweep began in this folder."""
    return (Path(folder) / SWEEP_FILE).is_file()


def write_sweep(folder: Path, members: Mapping[str, ViTSAERunnerConfig]) -> None:
    """Write down the members with all their settings, in their order."""
    write(folder / SWEEP_FILE, {"members": {name: cfg.to_dict() for name, cfg in members.items()}})


def read_members(folder: Path) -> dict[str, dict[str, Any]]:
    """Name of each member → its settings, as the sweep began.

    Raises:
        FileNotFoundError: there is no sweep in the folder.
        ValueError: its file is damaged, or names a member that is none of its folders.
    """
    if not is_sweep_folder(folder):
        raise FileNotFoundError(f"{folder} holds no sweep: there is no {SWEEP_FILE} in it")
    members = read(folder / SWEEP_FILE).get("members")
    if not isinstance(members, dict) or not all(isinstance(m, dict) for m in members.values()):
        raise ValueError(f"{folder / SWEEP_FILE} is damaged: it lists no members")
    check_member_names(map(str, members))
    return members


def config_to_resume(
    folder: Path, name: str, settings: dict[str, Any], **changes: Any
) -> ViTSAERunnerConfig:
    """A member's settings to go on with; to begin with, if it had not begun."""
    run = folder / name
    if (run / CONFIG_FILE).is_file():
        return load_config(run, **changes)
    places = {"output_path": str(run), "checkpoint_path": None}
    return ViTSAERunnerConfig.from_dict({**settings, **places, **changes})


def note_diverged(run_folder: Path, step: int, message: str) -> None:
    """Write down that a member was stopped, and why."""
    note = {"step": step, "message": message}
    write_text_atomically(run_folder / DIVERGED_FILE, json.dumps(note) + "\n")


def read_diverged(run_folder: Path) -> str | None:
    """Why a member was stopped; None if it wasn't."""
    path = run_folder / DIVERGED_FILE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["message"])
    except (ValueError, KeyError, TypeError):
        return "its loss was no longer finite"
