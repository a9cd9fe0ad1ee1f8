"""Open an SAE's folder without trusting it: its types, shapes, values and bytes are checked."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader
from sae_lens.registry import SAE_CLASS_REGISTRY
from safetensors import SafetensorError
from torch import Tensor

from vit_sae_plugin.field_types import check_values
from vit_sae_plugin.fingerprints import MANIFEST, check_file_hashes, read_manifest


def load_saved_sae(folder: str | Path, device: str = "cpu", dtype: str | None = None) -> SAE[Any]:
    """The SAE in a folder that SAELens, a training run or one of its checkpoints wrote.

    ``SAE.load_from_disk`` with checks: files that have changed since their hashes were taken
    (``manifest.json``; a folder without one still opens), settings of the wrong type, and weights
    that don't fit them or aren't finite are refused. A run's own folder will do: its finished SAE
    is taken.

    Args:
        folder: where it is.
        device: where it is put.
        dtype: its number format, such as ``"float32"``; None: the saved one.

    Raises:
        FileNotFoundError: there is no SAE in the folder.
        DamagedFileError: a file has changed since it was written; the message names it.
        ValueError: the settings or the weights can't be used; the message says which.
    """
    path = _sae_folder(Path(folder))
    _check_files(path)

    def checked_files(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        settings, weights = sae_lens_disk_loader(*args, **kwargs)
        check_finite_weights(weights, f"the SAE in {folder}")
        return settings, weights

    _check_settings(path)
    try:
        with no_loading_advice():
            return SAE.load_from_disk(path, device=device, dtype=dtype, converter=checked_files)
    except SafetensorError as error:
        raise ValueError(f"the weights in {folder} can't be read: {error}") from None
    except torch.OutOfMemoryError:
        raise
    # What a file says may fail anywhere in the classes that are built from it.
    except (
        *(ArithmeticError, AssertionError, AttributeError, LookupError),
        *(NotImplementedError, RuntimeError, TypeError),
    ) as error:
        raise ValueError(
            f"the SAE in {folder} can't be built: its {SAE_WEIGHTS_FILENAME} and {SAE_CFG_FILENAME}"
            f" don't go together, or one is damaged ({type(error).__name__}: {error})"
        ) from error


def check_finite_weights(weights: Mapping[str, Tensor], whose: str) -> None:
    """Raise unless all weights are finite.

    Args:
        weights: tensors by name, such as ``sae.state_dict()``.
        whose: what they belong to, for the message.

    Raises:
        ValueError: NaN or infinite values; the message names the tensor and counts them.
    """
    for name, tensor in weights.items():
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            raise ValueError(
                f"{name} of {whose} holds {int((~finite).sum()):,} values that are NaN or infinite "
                f"(of {tensor.numel():,}); its training diverged or its file is damaged: use an "
                "earlier checkpoint or another copy"
            )


@contextmanager
def no_loading_advice() -> Iterator[None]:
    """Without SAELens's advice how to load the model: it is for language models."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*This SAE has non-empty model_from_pretrained_kwargs")
        yield


def _sae_folder(folder: Path) -> Path:
    inside = folder / "sae"
    if not (folder / SAE_CFG_FILENAME).is_file() and (inside / SAE_CFG_FILENAME).is_file():
        folder = inside
    for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"there is no SAE in {folder}: it holds no {name}")
    return folder


def _check_files(folder: Path) -> None:
    """Compare the files that are read here with their hashes, if there are any."""
    if not (folder / MANIFEST).exists():
        return
    hashes = read_manifest(folder)
    if isinstance(hashes, dict):
        read = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME)
        hashes = {name: entry for name, entry in hashes.items() if name in read}
    try:
        check_file_hashes(folder, hashes)
    except ValueError as error:
        raise type(error)(f"{error} (if you changed it yourself, delete {MANIFEST})") from None


def _check_settings(folder: Path) -> None:
    """Check ``cfg.json`` as far as the architecture's own class says what is wanted."""
    path = folder / SAE_CFG_FILENAME
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("metadata", {}), dict):
        raise ValueError(f"{path} is no SAE's: want settings by name, with metadata by name")
    architecture = settings.get("architecture", "standard")
    if not isinstance(architecture, str) or architecture not in SAE_CLASS_REGISTRY:
        raise ValueError(
            f"the SAE in {folder} is of an unknown architecture {architecture!r}; known: "
            f"{', '.join(sorted(SAE_CLASS_REGISTRY))}"
        )
    if "metadata" not in settings:
        return  # SAELens below version 6 had other names, which it translates itself
    try:
        own = {name: value for name, value in settings.items() if name != "metadata"}
        check_values(own, SAE_CLASS_REGISTRY[architecture][1])
        for name in ("d_in", "d_sae"):
            if settings[name] < 1:
                raise ValueError(f"{name} is {settings[name]}; want 1 or more")
        k = settings.get("k")
        if isinstance(k, int) and not 1 <= k <= settings["d_sae"]:
            raise ValueError(f"k is {k}; want 1 to d_sae, {settings['d_sae']}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
