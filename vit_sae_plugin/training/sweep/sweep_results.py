"""What came of a sweep: its members' settings, metrics and ends, from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vit_sae_plugin.training.run_folder import CONFIG_FILE, SAE_FOLDER
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig
from vit_sae_plugin.training.sweep.sweep_folder import read_diverged, read_members
from vit_sae_plugin.training.training_metrics import METRICS_FILE, read_metrics

_LAST_SHARE = 0.1
_MEASURES = ("l0", "explained_variance", "n_dead_latents")
_HELD_OUT = ("held_out_l0", "held_out_explained_variance", "held_out_output_cosine")
_ALWAYS = ("sae.architecture", "sae.d_sae")
SPARSITY_SETTINGS = (
    "sae.k",
    "sae.l1_coefficient",
    "sae.relative_l1_coefficient",
    "sae.l0_coefficient",
)
"""Settings by which an architecture trades fidelity for sparsity."""
_NAMED = ("hook_name", "lr")
_NOT_SHOWN = ("output_path", "checkpoint_path", "resume_from_checkpoint", "sae.d_in", "sae.device")


@dataclass
class MemberResult:
    """One SAE of a sweep."""

    name: str
    folder: Path
    """Of its run; the SAE is in ``sae`` there once it is finished."""
    settings: dict[str, Any]
    """By their whole names, ``"sae.k"``."""
    metrics: pd.DataFrame
    """The lines of its ``metrics.jsonl``; empty if it has none."""
    diverged: str | None
    """Why it was stopped; None if it wasn't."""

    @property
    def status(self) -> str:
        """``"finished"``, ``"diverged"`` or ``"unfinished"``."""
        if (self.folder / SAE_FOLDER / "cfg.json").is_file():
            return "finished"
        return "unfinished" if self.diverged is None else "diverged"

    def measures(self) -> dict[str, float]:
        """Means over the last tenth of its lines; on held-out images, the last measurement."""
        lines = self.metrics
        if lines.empty:
            return {}
        n_last = max(1, round(_LAST_SHARE * len(lines)))
        found = {name: float(lines[name].tail(n_last).mean()) for name in _MEASURES}
        found["dead_share"] = found["n_dead_latents"] / self.settings["sae.d_sae"]
        for name in _HELD_OUT:
            if name in lines and lines[name].notna().any():
                found[name] = float(lines[name].dropna().iloc[-1])
        return found


@dataclass
class SweepResults:
    """The members of a sweep, in their order."""

    folder: Path
    members: list[MemberResult]

    @classmethod
    def load(cls, folder: str | Path) -> SweepResults:
        """Read a sweep's folder, whether it has come to its end or not.

        Raises:
            FileNotFoundError: there is no sweep in it.
        """
        folder = Path(folder)
        members = []
        for name, settings in read_members(folder).items():
            run = folder / name
            if (run / CONFIG_FILE).is_file():  # it may have been made longer since
                settings = ViTSAERunnerConfig.load(run / CONFIG_FILE).to_dict()
            metrics = run / METRICS_FILE
            members.append(
                MemberResult(
                    name,
                    run,
                    _flat(settings),
                    read_metrics(metrics) if metrics.is_file() else pd.DataFrame(),
                    read_diverged(run),
                )
            )
        return cls(folder, members)

    def varied(self) -> list[str]:
        """The settings in which members that have them differ, by their whole names."""
        values: dict[str, set[str]] = {}
        for member in self.members:
            for name, value in member.settings.items():
                values.setdefault(name, set()).add(json.dumps(value))
        return [name for name in values if len(values[name]) > 1 and name not in _NOT_SHOWN]

    def table(self) -> pd.DataFrame:
        """A row for each member: how it ended, in what it differs from others, and its measures.

        ``l0``, ``explained_variance`` and ``n_dead_latents`` are means over the last tenth of the
        logged training steps; ``held_out_…`` are of the last measurement.
        """
        there = {name for member in self.members for name in member.settings}
        knobs = [name for name in SPARSITY_SETTINGS if name in there]
        settings = list(dict.fromkeys([*_ALWAYS, *knobs, *self.varied()]))
        rows = {}
        for member in self.members:
            done = 0 if member.metrics.empty else int(member.metrics["n_tokens"].iloc[-1])
            row: dict[str, Any] = {"status": member.status}
            for name in settings:
                value = member.settings.get(name)
                row[name.removeprefix("sae.")] = json.dumps(value) if _is_group(value) else value
            rows[member.name] = row | {"n_tokens": done} | member.measures()
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")

    def short_table(self) -> pd.DataFrame:
        """``table`` without the settings that follow from the architecture by default."""
        table = self.table()
        knobs = [name.removeprefix("sae.") for name in (*_ALWAYS, *SPARSITY_SETTINGS, *_NAMED)]
        measures = [*_MEASURES, *_HELD_OUT]
        if "relative_l1_coefficient" in table:  # it decides, where it is given
            given = table["relative_l1_coefficient"].notna()
            table.loc[given, "l1_coefficient"] = None
        wanted = ["status", *knobs, "n_tokens", *measures]
        short = table[[name for name in wanted if name in table]]
        return short.drop(
            columns=[name for name in knobs if name in short and short[name].isna().all()]
        )


def _is_group(value: Any) -> bool:
    return isinstance(value, list | dict)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    sae = {f"sae.{name}": value for name, value in settings.get("sae", {}).items()}
    return {**sae, **{name: value for name, value in settings.items() if name != "sae"}}
