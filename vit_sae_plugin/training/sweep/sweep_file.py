"""A sweep's file: settings that all members begin with, and what each changes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_sae_plugin.training.config_checks import unknown_name_message
from vit_sae_plugin.training.config_files import check_settings, read
from vit_sae_plugin.training.presets import load_preset
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig
from vit_sae_plugin.training.setting_changes import flat_changes, with_changes

_KEYS = ("preset", "config", "settings", "members", "grid")
_NAME = re.compile(r"[\w=,+-][\w.=,+-]*")


@dataclass
class Sweep:
    """The members of a sweep, before a model says how wide they are.

    ``preset``, ``config`` (another settings file) or ``settings`` are what all begin with, the
    latter over either of the former; ``members`` is a list of changes, each with a ``name``, and
    ``grid`` gives settings a list of values each. With both, every member takes every value.
    """

    base: dict[str, Any]
    """Settings of all members, as ``ViTSAERunnerConfig.from_dict`` and ``complete_settings`` take
    them."""
    members: dict[str, dict[str, Any]]
    """Name → what the member changes, by the settings' whole names (``"sae.k"``)."""

    @classmethod
    def load(cls, path: str | Path) -> Sweep:
        """Read a ``.yaml``, ``.yml`` or ``.json`` file. A ``config`` it names lies relative to it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: an unknown key, a member without a name, a name twice, or a bad setting.
        """
        path = Path(path)
        try:
            return cls.from_dict(read(path), path.parent)
        except ValueError as error:
            raise ValueError(
                str(error) if str(path) in str(error) else f"{path}: {error}"
            ) from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], folder: Path = Path()) -> Sweep:
        """What a file holds; ``folder`` is where it lies."""
        for key in values:
            if key not in _KEYS:
                hint = ""
                if key in ViTSAERunnerConfig.__dataclass_fields__:
                    hint = " (settings of all members go under 'settings')"
                raise ValueError(unknown_name_message("key of a sweep", str(key), _KEYS) + hint)
        base = _base(values, folder)
        named = {**_members(values.get("members"))}
        points = _grid(values.get("grid"))
        members: dict[str, dict[str, Any]] = {}
        for (name, own), (point, at) in itertools.product(named.items(), points.items()):
            if both := own.keys() & at.keys():
                raise ValueError(f"{min(both)} is set by member {name!r} and by the grid; want one")
            members[",".join(part for part in (name, point) if part)] = own | at
        if members.keys() == {""}:
            raise ValueError("there are no 'members' and no 'grid'; want the SAEs to train")
        sweep = cls(base, members)
        check_member_names(members)
        for name in members:
            _check(f"member {name!r}", sweep.settings_of(name))
        return sweep

    def settings_of(self, name: str) -> dict[str, Any]:
        """A member's settings."""
        return with_changes(self.base, self.members[name])

    def change_all(self, changes: Mapping[str, Any]) -> Sweep:
        """With ``changes`` for all members, as a command line's flags are.

        Raises:
            ValueError: a member changes the same setting, or a bad setting.
        """
        for name, own in self.members.items():
            if both := own.keys() & changes.keys():
                raise ValueError(
                    f"{min(both)} is set for all members, but member {name!r} has its own "
                    f"({own[min(both)]!r}); want it in one place"
                )
        base = with_changes(self.base, changes)
        _check("settings", base)
        return Sweep(base, self.members)


def check_member_names(names: Iterable[str]) -> None:
    """Raise a ValueError unless each member's folder can have its name, also on disks that take
    capitals and small letters for the same."""
    folded: dict[str, str] = {}
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"a member's name is {name!r}; want letters, digits and any of _ . = , + - (it "
                "names a folder)"
            )
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise ValueError(
                f"two members are named {other!r} and {name!r}; want names that differ in more "
                "than capitals (some disks take their folders for one)"
            )


def _base(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    if values.get("preset") is not None and values.get("config") is not None:
        raise ValueError(
            f"preset is {values['preset']!r} and config is {values['config']!r}; want one of the "
            "two (and what differs from it under 'settings')"
        )
    base: dict[str, Any] = {}
    if values.get("preset") is not None:
        base = load_preset(str(values["preset"]))
    elif values.get("config") is not None:
        base = read(folder / str(values["config"]))
    own = values.get("settings") or {}
    if not isinstance(own, dict):
        raise ValueError(f"settings is {own!r}; want settings by name")
    base = with_changes(base, flat_changes(own, "settings: "))
    _check("settings", base)
    return base


def _members(entries: Any) -> dict[str, dict[str, Any]]:
    if entries is None:
        return {"": {}}
    if isinstance(entries, dict):
        entries = [{"name": name, **(changes or {})} for name, changes in entries.items()]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"members is {entries!r}; want a list of changes, each with a name")
    members: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.get("name") is None:
            raise ValueError(f"member {entry!r} has no 'name'; want one, for its folder")
        name = str(entry["name"])
        if name in members:
            raise ValueError(f"two members are named {name!r}; want different names")
        changes = {key: value for key, value in entry.items() if key != "name"}
        members[name] = flat_changes(changes, f"member {name!r}: ")
    return members


def _grid(values: Any) -> dict[str, dict[str, Any]]:
    """Name of each point, such as ``"k=8,lr=0.001"`` → its settings."""
    if values is None:
        return {"": {}}
    if not isinstance(values, dict):
        raise ValueError(f"grid is {values!r}; want lists of values by the settings' names")
    flat = flat_changes(values, "grid: ")
    for name, choices in flat.items():
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"grid: {name} is {choices!r}; want a list of values")
    points = {}
    for choice in itertools.product(*flat.values()):
        at = dict(zip(flat, choice, strict=True))
        point = ",".join(f"{key.rpartition('.')[2]}={_short(one)}" for key, one in at.items())
        if point in points:
            raise ValueError(f"grid: {point} is there twice; want different values")
        points[point] = at
    return points


def _short(value: Any) -> str:
    """A value as part of a name: ``blocks.2.hook_resid_post``, ``0.001``; of a list ``8+16``."""
    if isinstance(value, list):
        return "+".join(_short(entry) for entry in value)
    return f"{value:g}" if isinstance(value, float) else re.sub(r"[^\w.+-]+", "-", str(value))


def _check(what: str, settings: dict[str, Any]) -> None:
    """Names and types of settings, of which some may still be relative to the data."""
    relative = {"training_epochs", "lr_decay_fraction"}
    known = ViTSAERunnerConfig.__dataclass_fields__.keys() | relative
    for name in settings:
        if name not in known:
            raise ValueError(f"{what}: {unknown_name_message('setting', str(name), known)}")
    try:
        check_settings(ViTSAERunnerConfig, settings)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
