"""A saved SAE and the model it reads, as the commands that take an SAE's folder need them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT


def load_sae(folder: str, device: str = "cpu") -> SAE[Any]:
    """The SAE in a folder that SAELens, ``vit-sae train`` or a run's checkpoint wrote."""
    from vit_sae_plugin.saved_sae import load_saved_sae

    return load_saved_sae(folder, device)


def load_model(sae: SAE[Any], args: argparse.Namespace, device: str) -> HookedViT:
    """The model named on the command line, or else the one the SAE's metadata name."""
    from vit_sae_plugin.activations import ActivationSource
    from vit_sae_plugin.hooked_vit import HookedViT

    if args.model is None:
        if args.pretrained is not None:
            raise ValueError("--pretrained goes with --model")
        return ActivationSource.from_metadata(sae.cfg.metadata).load_model(device)
    return HookedViT.from_pretrained(args.model, device=device, **weights_flag(args.pretrained))


def weights_flag(pretrained: str | None) -> dict[str, Any]:
    """What ``--pretrained`` says, as an argument of ``HookedViT.from_pretrained``."""
    if pretrained is None:
        return {}
    return {"pretrained": False if pretrained.lower() == "none" else pretrained}


def folder_beside(sae_folder: str, name: str) -> Path:
    """Where results about an SAE go unless a folder is named: inside the SAE's folder."""
    return Path(sae_folder) / name
