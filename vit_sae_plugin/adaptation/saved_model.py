"""Adapted models as folders: what was learnt, as safetensors, and what it belongs to, as JSON.

``adaptation.json`` holds the settings, the classes learnt, and the name and a hash of the model
that was adapted; ``adapter.safetensors`` the learnt tensors. The model itself is not copied.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_sae_plugin.adaptation.config import AdaptationConfig
from vit_sae_plugin.adaptation.insertion import BaseModel, Insertion, insert
from vit_sae_plugin.fingerprints import DamagedFileError, file_hashes, short, weights_fingerprint
from vit_sae_plugin.hooked_vit import HookedViT, WeightsError
from vit_sae_plugin.hooked_vit.loading import LoadedModel

CONFIG_FILE = "adaptation.json"
TENSORS_FILE = "adapter.safetensors"
FORMAT_VERSION = 1


class AdaptationFileError(ValueError):
    """An adapted model's folder, or a checkpoint, that can't be used as it is."""


def inserted(
    model: HookedViT, config: AdaptationConfig, class_names: list[str], *, in_place: bool = False
) -> tuple[LoadedModel, Insertion]:
    """A copy of a model, with what ``config.method`` learns put in.

    Args:
        model: a CLIP.
        config: a complete one.
        class_names: the classes that are learnt.
        in_place: change the model's own module instead, which nobody else uses.

    Raises:
        ValueError, UnsupportedTowerError: the method can't adapt this model.
    """
    if getattr(model.bare_model, "class_head", None) is not None:
        raise ValueError(
            f"{model.model_name!r} is an adapted model; want the one that it was made from"
        )
    base = BaseModel.of(model)
    if not in_place:
        base.module = copy.deepcopy(model.bare_model)
    generator = torch.Generator().manual_seed(config.seed)
    insertion = insert(base, config, class_names, generator)
    base.module.to(model.cfg.device)
    loaded = LoadedModel(
        base.module, model.preprocess, insertion.tokenizer, tower=insertion.tower, pretrained=True
    )
    return loaded, insertion


def wrap(loaded: LoadedModel, model_name: str, recorded: Mapping[str, Any]) -> HookedViT:
    """An adapted model as a ``HookedViT``."""
    model = HookedViT.from_module(
        loaded.module.eval(),
        tower=loaded.tower,
        preprocess=loaded.preprocess,
        tokenizer=loaded.tokenizer,
        model_name=model_name,
        from_pretrained_kwargs=dict(recorded),
    )
    model.has_pretrained_weights = True
    return model


def write_adapted(
    folder: Path,
    model: HookedViT,
    config: AdaptationConfig,
    class_names: list[str],
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, Any],
) -> None:
    """Write both files into a folder.

    Args:
        folder: an existing one.
        model: the model that was adapted, as it was before.
        config: a complete one.
        class_names: the classes that were learnt.
        tensors: what was learnt.
        notes: what else is to be known of it, as plain values.
    """
    from safetensors.torch import save_file

    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / TENSORS_FILE,
    )
    values = {
        "format_version": FORMAT_VERSION,
        "config": config.to_dict(),
        "class_names": class_names,
        "base": {
            "model_name": model.model_name,
            "from_pretrained_kwargs": model.from_pretrained_kwargs,
            "weights_sha256": weights_fingerprint(model.bare_model),
        },
        "files": file_hashes(folder, [TENSORS_FILE]),
        **notes,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")


def recorded_settings(folder: Path) -> dict[str, Any]:
    """What is recorded, beside the folder, with everything that is made from an adapted model."""
    return {"adapter_sha256": read_config(folder)["files"][TENSORS_FILE]["sha256"]}


def read_config(folder: Path) -> dict[str, Any]:
    """What ``adaptation.json`` says, checked for its shape.

    Raises:
        AdaptationFileError: there is none, or it is damaged or from a later version.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdaptationFileError(
            f"{folder} has no {CONFIG_FILE}, so it holds no adapted model, or one whose training "
            "was interrupted: give the same 'vit-sae adapt' command again, or name another folder"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format_version"]
        base, files = values["base"], values["files"][TENSORS_FILE]
        shape = [
            (base["model_name"], str),
            (base["from_pretrained_kwargs"], dict),
            (base["weights_sha256"], str),
            (files["sha256"], str),
            (values["config"], dict),
            (values["class_names"], list),
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdaptationFileError(
            f"{path} can't be read ({type(error).__name__}: {error}); adapt the model again or "
            "restore a copy"
        ) from None
    if version != FORMAT_VERSION:
        raise AdaptationFileError(
            f"{path} is of format {version!r}; want {FORMAT_VERSION}: install the version of this "
            "package that wrote it"
        )
    for value, kind in shape:
        if not isinstance(value, kind):
            raise AdaptationFileError(f"{path} holds {value!r}; want a {kind.__name__} there")
    return values


def load_adapted_folder(
    folder: Path,
    *,
    pretrained: str | bool | None = None,
    cache_dir: str | None = None,
    trusted: bool = True,
    adapter_sha256: str | None = None,
    base: HookedViT | None = None,
) -> LoadedModel:
    """The adapted model in a folder; ``HookedViT.from_pretrained(folder)`` calls this.

    The model that was adapted is loaded as a file names it: no code that comes with one runs.

    Args:
        folder: where ``adapt`` wrote it.
        pretrained: True or None; an adapted model has its own weights.
        cache_dir: where downloads are kept.
        trusted: has no effect: a folder is never trusted.
        adapter_sha256: what the learnt tensors must be, as recorded with an SAE.
        base: the model that was adapted, if it can't be loaded by its name.

    Raises:
        AdaptationFileError: the files are damaged, don't fit the model, or are others than those
            recorded.
        WeightsError: ``pretrained`` asks for others than its own.
    """
    if pretrained not in (None, True):
        raise WeightsError(
            f"pretrained is {pretrained!r}, but {folder} comes with its weights; want True (or "
            "nothing)"
        )
    values = read_config(folder)
    tensors = _read_tensors(folder, values["files"], adapter_sha256)
    is_own = base is None
    if base is None:
        named = values["base"]
        base = HookedViT.from_recorded(
            named["model_name"], named["from_pretrained_kwargs"], cache_dir=cache_dir
        )
    found = weights_fingerprint(base.bare_model)
    if found != values["base"]["weights_sha256"]:
        raise AdaptationFileError(
            f"{folder} was adapted from {values['base']['model_name']!r} with the weights "
            f"{short(values['base']['weights_sha256'])}, and this model's are {short(found)}; want "
            "the same model"
        )
    try:
        config = AdaptationConfig.from_dict(values["config"])
        class_names = [str(name) for name in values["class_names"]]
        loaded, insertion = inserted(base, config, class_names, in_place=is_own)
        insertion.load(tensors)
    except (ValueError, TypeError) as error:
        raise AdaptationFileError(f"{folder} doesn't fit its model: {error}") from None
    insertion.finish()
    loaded.recorded = recorded_settings(folder)
    return loaded


def _read_tensors(folder: Path, files: dict[str, Any], wanted: str | None) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        found = file_hashes(folder, [TENSORS_FILE])[TENSORS_FILE]["sha256"]
    except OSError as error:
        raise AdaptationFileError(f"{folder} lacks {TENSORS_FILE}: {error}") from None
    if found != files[TENSORS_FILE]["sha256"]:
        raise DamagedFileError(
            f"the contents of {folder / TENSORS_FILE} have changed since they were written; adapt "
            "the model again or restore a copy"
        )
    if wanted is not None and found != wanted:
        raise AdaptationFileError(
            f"{folder} holds the adapted model {short(found)}, but {short(wanted)} is asked for: "
            "it was adapted anew since that was recorded; want the folder as it was then"
        )
    return load_file(folder / TENSORS_FILE)
