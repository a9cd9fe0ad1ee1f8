"""Settings shipped with the package, and settings that depend on the model and the data."""

from __future__ import annotations

import copy
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from typing import Any

from vit_sae_plugin.training.config_checks import check_positive, unknown_name_message
from vit_sae_plugin.training.config_files import read

_FOLDER = files(__package__) / "presets"


def preset_names() -> list[str]:
    """The names that ``load_preset`` takes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir())


def preset_summary(name: str) -> str:
    """What a preset says of itself: the comment that opens its file, as one line."""
    lines = _entry(name).read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return " ".join(comment)


def load_preset(name: str) -> dict[str, Any]:
    """A preset's settings; give them to ``complete_settings``.

    Raises:
        ValueError: there is no preset of this name.
    """
    with as_file(_entry(name)) as path:
        return read(path)


def _entry(name: str) -> Traversable:
    if name not in preset_names():
        raise ValueError(unknown_name_message("preset", name, preset_names()))
    return _FOLDER / f"{name}.yaml"


def complete_settings(
    settings: dict[str, Any], *, d_in: int, n_rows_per_epoch: int | None
) -> dict[str, Any]:
    """Settings in which what depends on the model and the data is worked out.

    - ``sae.d_in``, if missing, is the width of the hook.
    - ``sae.expansion_factor`` gives ``sae.d_sae``.
    - ``training_epochs`` gives ``training_tokens``.
    - ``lr_decay_fraction`` (of all training steps) gives ``lr_decay_steps``.

    Args:
        d_in: width of the rows.
        n_rows_per_epoch: rows in one pass over the data; None if unknown, as with streams.

    Raises:
        ValueError: a setting and its relative counterpart are both given, or ``training_epochs``
            with data of unknown length.
    """
    settings = copy.deepcopy(settings)
    sae = settings.setdefault("sae", {})
    if not isinstance(sae, dict):
        raise ValueError(f"sae is {sae!r}; want the SAE's settings by name")
    if sae.get("d_in") is None:
        sae["d_in"] = d_in
    if (factor := _take_relative(sae, "expansion_factor", "d_sae")) is not None:
        sae["d_sae"] = round(factor * sae["d_in"])
    if (epochs := _take_relative(settings, "training_epochs", "training_tokens")) is not None:
        if n_rows_per_epoch is None:
            raise ValueError(
                f"training_epochs is {epochs}, but the data is a stream of unknown length; "
                "want training_tokens instead"
            )
        settings["training_tokens"] = round(epochs * n_rows_per_epoch)
    if (fraction := _take_relative(settings, "lr_decay_fraction", "lr_decay_steps")) is not None:
        if fraction > 1:
            raise ValueError(f"lr_decay_fraction is {fraction}; want at most 1")
        n_tokens = settings.get("training_tokens", 2_000_000)
        n_steps = int(n_tokens) // int(settings.get("train_batch_size_tokens", 4096))
        settings["lr_decay_steps"] = round(fraction * n_steps)
    return settings


def _take_relative(settings: dict[str, Any], relative: str, absolute: str) -> float | None:
    value = settings.pop(relative, None)
    if value is None:
        return None
    if settings.get(absolute) is not None:
        raise ValueError(
            f"{relative} is {value} and {absolute} is {settings[absolute]}; want one of the two"
        )
    check_positive(**{relative: value})
    return float(value)
