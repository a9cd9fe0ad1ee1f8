"""Turn an SAE into a plain SAELens architecture, which loads without this package installed."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from sae_lens import SAE, SAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from vit_sae_plugin.atomic_files import write_folder_atomically
from vit_sae_plugin.fingerprints import write_manifest
from vit_sae_plugin.saved_sae import check_finite_weights, no_loading_advice

from .patch_aggregated import PatchAggregatedSAE

ExportArchitecture = Literal["standard", "topk"]

_RELU_ARCHITECTURES = (
    "standard",
    "standard_ghost",
    "standard_relative_l1",
    "patchsae",
    "matryoshka_topk",
)
_TOPK_ARCHITECTURES = ("topk", "topk_ghost", "matryoshka_topk")
_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")

_Plain = TypeVar("_Plain", bound=SAE)


def export_as_standard(sae: SAE[Any]) -> StandardSAE:
    """A copy of ``sae`` as SAELens's ``standard`` (ReLU) SAE, with the same outputs.

    Args:
        sae: a ``patchsae`` or ``standard`` SAE (or one of our variants of ``standard``), trained or
            in training; a ``matryoshka_topk`` whose ``k`` is None, that is, which uses all
            positive latents; or a ``patch_aggregated`` one around any of these.

    Returns:
        A new SAE on the same device, in the same dtype, with its own weights and the same
        metadata.

    Raises:
        ValueError: the SAE computes something that a ``standard`` SAE can't.
    """
    sae = _without_aggregation(sae)
    architecture = sae.cfg.architecture()
    if architecture not in _RELU_ARCHITECTURES:
        raise ValueError(
            f"architecture is {architecture!r}; want a plain ReLU SAE to export as 'standard': "
            f"{', '.join(_RELU_ARCHITECTURES)}"
        )
    _refuse_soft_cap(sae)
    k = getattr(sae.cfg, "k", None)
    if k is not None:
        raise ValueError(
            f"this {architecture!r} SAE keeps its k={k} largest latents, which 'standard' can't; "
            f"use export_as_topk(sae, k={k}), or set sae.cfg.k = None to keep all positive ones"
        )
    return _plain_copy(sae, StandardSAE, StandardSAEConfig)


def export_as_topk(sae: SAE[Any], k: int | None = None) -> TopKSAE:
    """A copy of ``sae`` as SAELens's ``topk`` SAE, with the same outputs at this ``k``.

    Decoder norms that the SAE multiplies its latents by are folded into the weights.

    Args:
        sae: a ``topk`` or ``topk_ghost`` SAE, or a ``matryoshka_topk``, whose one set of weights
            serves every ``k``; or a ``patch_aggregated`` one around any of these.
        k: number of latents to keep. None: the SAE's own.

    Raises:
        ValueError: the SAE computes something that a ``topk`` SAE with this ``k`` can't.
    """
    sae = _without_aggregation(sae)
    architecture = sae.cfg.architecture()
    if architecture not in _TOPK_ARCHITECTURES:
        raise ValueError(
            f"architecture is {architecture!r}; want a top-k SAE to export as 'topk': "
            f"{', '.join(_TOPK_ARCHITECTURES)}"
        )
    _refuse_soft_cap(sae)
    own_k = sae.cfg.k
    k = own_k if k is None else k
    if k is None:
        raise ValueError(
            "k is None, that is, all positive latents; want how many 'topk' is to keep, as in "
            "export_as_topk(sae, k=64)"
        )
    if not 1 <= k <= sae.cfg.d_sae:
        raise ValueError(f"k is {k}; want 1 to d_sae, {sae.cfg.d_sae}")
    if architecture != "matryoshka_topk" and k != own_k:
        raise ValueError(
            f"k is {k}; want {own_k}, for which this {architecture!r} SAE was trained: leave k out"
        )
    plain = _plain_copy(sae, TopKSAE, TopKSAEConfig, k=k)
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        plain.fold_and_get_W_dec_norm()
    return plain


def save_exported(
    sae: SAE[Any],
    folder: str | Path,
    architecture: ExportArchitecture = "standard",
    k: int | None = None,
) -> Path:
    """Export ``sae`` and save it as a SAELens folder (``cfg.json``, ``sae_weights.safetensors``).

    ``manifest.json`` beside them keeps their hashes. The folder appears when it is complete.

    Args:
        sae: the SAE.
        folder: where to; a new folder, or an empty one.
        architecture: "standard" or "topk".
        k: for "topk", see ``export_as_topk``.

    Raises:
        ValueError: the SAE can't be exported like that, or its weights aren't finite.
        FileExistsError: the folder isn't empty: nothing is replaced.
    """
    folder = Path(folder)
    check_new_folder(folder)
    check_finite_weights(sae.state_dict(), "this SAE")
    if architecture == "standard":
        if k is not None:
            raise ValueError(f"k is {k}; want none for a 'standard' SAE")
        plain: SAE[Any] = export_as_standard(sae)
    elif architecture == "topk":
        plain = export_as_topk(sae, k)
    else:
        raise ValueError(f"architecture is {architecture!r}; want 'standard' or 'topk'")

    def write(new_folder: Path) -> None:
        plain.save_model(new_folder)
        write_manifest(new_folder)

    write_folder_atomically(folder, write)
    return folder


def check_new_folder(folder: Path) -> None:
    """Raise unless a folder is new or empty.

    Raises:
        FileExistsError: there is something in it, or it is a file.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists and is not empty; an export replaces nothing: name a new folder"
        )


def _without_aggregation(sae: SAE[Any]) -> SAE[Any]:
    return sae.base if isinstance(sae, PatchAggregatedSAE) else sae


def _refuse_soft_cap(sae: SAE[Any]) -> None:
    soft_cap = getattr(sae.cfg, "soft_cap", None)
    if soft_cap:
        raise ValueError(
            f"this SAE caps its latents softly (soft_cap={soft_cap}), which no plain SAELens "
            f"architecture does; it can only be loaded with vit_sae_plugin installed"
        )


@torch.no_grad()
def _plain_copy(
    sae: SAE[Any], sae_class: type[_Plain], config_class: type[SAEConfig], **settings: Any
) -> _Plain:
    shared = {field.name: getattr(sae.cfg, field.name) for field in fields(SAEConfig)}
    # Built without memory first, as SAELens loads its own: no random initialisation is drawn.
    shared |= {"device": "meta", "metadata": deepcopy(sae.cfg.metadata)}
    with no_loading_advice():
        plain = sae_class(config_class(**shared, **settings))
    weights = {name: sae.get_parameter(name).detach().clone().contiguous() for name in _WEIGHTS}
    plain.load_state_dict(weights, assign=True)
    return plain.to(device=sae.W_dec.device, dtype=sae.W_dec.dtype)
