"""A saved SAE and the model it reads, as the commands that take an SAE's folder need them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT


def load_sae(folder: str, device: str = "cpu") -> SAE[Any]:
    """The SAE in a folder that SAELens, ``vit-sae train`` or a run's checkpoint wrote.

    A run's own folder will do: its finished SAE is taken.

    Raises:
        FileNotFoundError: there is no SAE in the folder.
        ValueError: its architecture is unknown, or its weights can't be read.
    """
    from sae_lens import SAE
    from sae_lens.registry import SAE_CLASS_REGISTRY
    from safetensors import SafetensorError

    path = Path(folder)
    if not (path / "cfg.json").is_file() and (path / "sae" / "cfg.json").is_file():
        path = path / "sae"
    if not (path / "cfg.json").is_file():
        raise FileNotFoundError(f"there is no SAE in {folder}: it holds no cfg.json")
    try:
        return SAE.load_from_disk(path, device=device)
    except KeyError as error:
        raise ValueError(
            f"the SAE in {folder} is of an unknown architecture {error}; known: "
            f"{', '.join(sorted(SAE_CLASS_REGISTRY))}"
        ) from None
    except SafetensorError as error:
        raise ValueError(f"the weights in {folder} can't be read: {error}") from None


def load_model(sae: SAE[Any], args: argparse.Namespace, device: str) -> HookedViT:
    """The model named on the command line, or else the one the SAE's metadata name."""
    from vit_sae_plugin.activations import ActivationSource
    from vit_sae_plugin.hooked_vit import HookedViT

    if args.model is None:
        if args.pretrained is not None:
            raise ValueError("--pretrained goes with --model")
        return ActivationSource.from_metadata(sae.cfg.metadata).load_model(device)
    kwargs = {} if args.pretrained is None else {"pretrained": args.pretrained}
    return HookedViT.from_pretrained(args.model, device=device, **kwargs)


def folder_beside(sae_folder: str, name: str) -> Path:
    """Where results about an SAE go unless a folder is named: inside the SAE's folder."""
    return Path(sae_folder) / name
