"""Settings to and from plain dictionaries, YAML and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from sae_lens.config import LoggingConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAEConfig

from vit_sae_plugin.atomic_files import write_text_atomically
from vit_sae_plugin.field_types import check_values
from vit_sae_plugin.training.config_checks import unknown_name_message

ConfigT = TypeVar("ConfigT")
"""The runner's config: a dataclass, of whose fields ``sae`` and ``logger`` are dataclasses too."""


class _SettingsLoader(yaml.SafeLoader):
    """YAML that reads ``4e-4`` as a number, which PyYAML takes for a string."""


_SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read(path: str | Path) -> dict[str, Any]:
    """Read a settings file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: another ending than .yaml, .yml or .json, or not a mapping of settings.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no settings file {path}")
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, _SettingsLoader) if _is_yaml(path) else json.loads(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; want settings by name")
    return values


def parse_setting(text: str) -> Any:
    """One value as a settings file would hold it: ``4e-4``, ``true``, ``null``, ``[8, 16]``.

    Raises:
        ValueError: the text is no such value.
    """
    try:
        return yaml.load(text, _SettingsLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{text!r} can't be read as a value: {error}") from None


def write(path: Path, values: dict[str, Any]) -> None:
    """Write a settings file; its ending says which kind."""
    if _is_yaml(path):
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    else:
        text = json.dumps(values, indent=2) + "\n"
    write_text_atomically(path, text)


def _is_yaml(path: Path) -> bool:
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"settings file {path} ends in {path.suffix!r}; want .yaml, .yml or .json")
    return path.suffix != ".json"


def config_to_dict(config: Any) -> dict[str, Any]:
    """A runner config as plain values; the SAE's begin with its architecture."""
    values = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    sae = config.sae.to_dict()
    del sae["metadata"]  # written by the run, not a setting
    values["sae"] = {"architecture": sae.pop("architecture"), **sae}
    values["logger"] = asdict(config.logger)
    # YAML has no tuples, and JSON would bring them back as lists anyway
    return json.loads(json.dumps(values))


def check_settings(cls: type[Any], values: dict[str, Any]) -> None:
    """Check the types of a runner's settings, as a file or a person gave them.

    Settings without a type here (unknown ones, or relative ones as ``training_epochs``) are left to
    those who read them.

    Raises:
        ValueError: the first of the wrong type.
    """
    for name in ("sae", "logger", "model_from_pretrained_kwargs"):
        if not isinstance(values.get(name) or {}, dict):
            raise ValueError(f"{name} is {values[name]!r}; want settings by name")
    inner = {"sae": TrainingSAEConfig, "logger": LoggingConfig}
    check_values({k: v for k, v in values.items() if k not in inner}, cls, need_all=False)
    sae, logger = values.get("sae") or {}, values.get("logger") or {}
    architecture = sae.get("architecture")
    if architecture in list(SAE_TRAINING_CLASS_REGISTRY):
        inner["sae"] = SAE_TRAINING_CLASS_REGISTRY[architecture][1]
    own = {name: value for name, value in sae.items() if name != "metadata"}
    check_values(own, inner["sae"], need_all=False, prefix="sae.")
    check_values(logger, LoggingConfig, need_all=False, prefix="logger.")


def config_from_dict(cls: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """The runner config that ``config_to_dict`` made plain.

    Raises:
        ValueError: no ``sae``, or an unknown setting or architecture.
    """
    _refuse_unknown("setting", values, (entry.name for entry in fields(cast(Any, cls))))
    check_settings(cls, values)
    if not isinstance(values.get("sae"), dict) or "architecture" not in values["sae"]:
        raise ValueError("there is no 'sae' with an 'architecture' among the settings")
    logger = values.get("logger") or {"log_to_wandb": False}
    _refuse_unknown("setting of logger", logger, (entry.name for entry in fields(LoggingConfig)))
    return cls(
        **{
            **values,
            "sae": sae_config_from_dict(values["sae"]),
            "logger": LoggingConfig(**{"log_to_wandb": False, **logger}),
        }
    )


def sae_config_from_dict(values: dict[str, Any]) -> TrainingSAEConfig:
    """The config of a training SAE, from its architecture's name and its settings.

    Raises:
        ValueError: an unknown architecture or setting, or ``d_in`` or ``d_sae`` is missing.
    """
    architecture = values["architecture"]
    if architecture not in list(SAE_TRAINING_CLASS_REGISTRY):
        raise ValueError(
            unknown_name_message("architecture", str(architecture), SAE_TRAINING_CLASS_REGISTRY)
        )
    config_class = SAE_TRAINING_CLASS_REGISTRY[architecture][1]
    known = {entry.name for entry in fields(config_class)} | {"architecture"}
    _refuse_unknown(f"setting of {architecture}", values, known)
    for name in ("d_in", "d_sae"):
        if values.get(name) is None:
            raise ValueError(f"sae.{name} is missing")
    return TrainingSAEConfig.from_dict(values)


def _refuse_unknown(what: str, values: Iterable[str], known: Iterable[str]) -> None:
    known = set(known)
    for name in values:
        if name not in known:
            raise ValueError(unknown_name_message(what, str(name), known))
