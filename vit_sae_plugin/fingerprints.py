"""Hashes that tell whether a file belongs to a model, an SAE and a data set, and is undamaged."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor, nn

from vit_sae_plugin.atomic_files import write_text_atomically

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

MANIFEST = "manifest.json"
"""Beside the files of an SAE or a checkpoint: size and SHA-256 of each of them."""
FileHashes = dict[str, dict[str, Any]]
"""File name → ``{"size": bytes, "sha256": hex}``."""

_KNOWN: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()


def model_fingerprint(model: HookedViT) -> str:
    """SHA-256 (hex) over what a model computes: its weights, and its modules as torch prints them.

    So a CLIP with QuickGELU is told from one with GELU, though their weights may be the same.
    """
    structure = re.sub(r" at 0x[0-9a-f]+", "", str(model.bare_model))
    return _hash(model.bare_model.state_dict(), structure)


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 (hex) over a module's weights alone, whatever version of its library built it."""
    return _hash(module.state_dict())


def sae_fingerprint(sae: SAE[Any]) -> str:
    """SHA-256 (hex) over what an SAE computes: its weights and the settings in its config.

    The device doesn't count, nor do the metadata, which say where the SAE comes from; but for
    ``input_statistics``, by which its input is standardised. So an SAE that is saved, loaded or
    moved keeps its fingerprint, and an SAE in training has that of the one it is saved as, unless
    that is of another architecture (BatchTopK is saved as JumpReLU).
    """
    settings, weights = sae.cfg.to_dict(), sae.state_dict()
    if isinstance(sae, TrainingSAE):
        saved = sae.cfg.get_inference_sae_cfg_dict()
        if saved["architecture"] == sae.cfg.architecture():
            weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
            sae.process_state_dict_for_saving_inference(weights)
            settings = saved
    kept = {
        name: value
        for name, value in settings.items()
        # the weights have the type; what a device is called differs from machine to machine
        if name not in ("device", "dtype", "metadata")
    }
    kept["input_statistics"] = sae.cfg.metadata.input_statistics
    return _hash(weights, json.dumps(kept, sort_keys=True, default=str))


def known_sae_fingerprint(sae: SAE[Any]) -> str:
    """An SAE's fingerprint, hashed again only when its settings or weights have changed.

    Weights are compared by sums of their bits along rows and columns, which takes a tenth of the
    time that hashing does. (PyTorch's own count of changes misses writes through ``.data``.)
    """
    weights = sorted(sae.state_dict().items())
    version = (str(sae.cfg.to_dict()), [(name, _bit_sums(tensor)) for name, tensor in weights])
    known = _KNOWN.get(sae)
    if known is None or known[0] != version:
        known = _KNOWN[sae] = (version, sae_fingerprint(sae))
    return known[1]


def known_model_fingerprint(model: HookedViT) -> str:
    """A model's fingerprint, hashed again only when PyTorch has counted a change or a sample of the
    weights differs.

    Hashing goes through all weights, of the text tower too: about a second a gigabyte. PyTorch
    doesn't count writes through ``.data``, so a sample of each tensor is compared as well; a write
    that reaches none of it is missed.
    """
    tensors = model.bare_model.state_dict().items()
    version = [(name, t.data_ptr(), t._version, _sample(t)) for name, t in tensors]
    known = _KNOWN.get(model)
    if known is None or known[0] != version:
        known = _KNOWN[model] = (version, model_fingerprint(model))
    return known[1]


_WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SAMPLE_SIZE = 64


def _sample(tensor: Tensor) -> bytes:
    """The bits of numbers spread evenly over a tensor."""
    flat = tensor.detach().reshape(-1)
    chosen = flat[:: max(1, flat.numel() // _SAMPLE_SIZE)].contiguous()
    return chosen.view(_WHOLE_NUMBERS[tensor.element_size()]).cpu().numpy().tobytes()


def _bit_sums(tensor: Tensor) -> tuple[object, ...]:
    rows = tensor.detach().reshape(len(tensor) if tensor.ndim else 1, -1)
    bits = rows.contiguous().view(_WHOLE_NUMBERS[tensor.element_size()])
    sums = torch.cat([bits.sum(dim=0, dtype=torch.int64), bits.sum(dim=1, dtype=torch.int64)])
    digest = hashlib.sha256(sums.cpu().numpy().data)
    return tuple(tensor.shape), str(tensor.dtype), digest.hexdigest()


def short(sha256: str) -> str:
    """A hash's first eight digits, for people."""
    return sha256[:8]


class DamagedFileError(ValueError):
    """A file is not as it was written."""


def file_hashes(folder: Path, names: Iterable[str] | None = None) -> FileHashes:
    """Size and SHA-256 of files in a folder, as plain values to keep in its metadata.

    Args:
        folder: the folder.
        names: which files; None: all that lie directly in it, but for the manifest itself.
    """
    if names is None:
        found = (path.name for path in folder.iterdir() if path.is_file())
        names = sorted(name for name in found if name != MANIFEST)
    return {
        name: {"size": (folder / name).stat().st_size, "sha256": _file_sha256(folder / name)}
        for name in names
    }


def find_file_damage(folder: Path, hashes: Any) -> str | None:
    """What is wrong with the files that ``file_hashes`` described; None if nothing is.

    ``hashes`` may have come from a file: anything but hashes of files in this folder is damage.
    """
    try:
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in hashes.items()}
    except (TypeError, KeyError, AttributeError):
        return "the hashes of its files are unreadable"
    for name, (size, sha256) in expected.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes where {size} were written"
        if _file_sha256(path) != sha256:
            return f"the contents of {name} have changed"
    return None


def check_file_hashes(folder: Path, hashes: Any) -> None:
    """Raise unless the files are those that ``file_hashes`` described.

    Raises:
        DamagedFileError: one is missing or has changed; the message names it.
    """
    damage = find_file_damage(folder, hashes)
    if damage is not None:
        raise DamagedFileError(f"{folder} is damaged: {damage}; make it again or restore a copy")


def values_sha256(values: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of plain values in any order; the same once written as JSON and read back."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path) -> None:
    """Keep size and SHA-256 of a folder's files beside them, in ``manifest.json``."""
    (folder / MANIFEST).write_text(json.dumps(file_hashes(folder), indent=1), encoding="utf-8")


def renew_in_manifest(folder: Path, names: Iterable[str]) -> None:
    """Take the hashes of some files anew, if the folder has a readable manifest.

    Those of other files are kept, so that damage to them still shows.
    """
    manifest = read_manifest(folder)
    if isinstance(manifest, dict):
        written = [name for name in names if (folder / name).is_file()]
        text = json.dumps(manifest | file_hashes(folder, written), indent=1)
        write_text_atomically(folder / MANIFEST, text)


def read_manifest(folder: Path) -> Any:
    """What ``write_manifest`` kept; None if it is missing or no JSON."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(weights: Mapping[str, Tensor], settings: str = "") -> str:
    digest = hashlib.sha256(settings.encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
