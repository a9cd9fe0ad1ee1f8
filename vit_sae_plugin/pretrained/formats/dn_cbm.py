"""DN-CBM: a state dict whose tensors have a component axis of length 1 in front.

``f = ReLU((x − tied_bias) Wᵀ + b)``, ``x̂ = f Dᵀ + tied_bias``. The bias is stored three times.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from vit_sae_plugin.pretrained.format import Format
from vit_sae_plugin.pretrained.read_sae import ReadSAE, StateDict
from vit_sae_plugin.pretrained.source_files import SourceFiles
from vit_sae_plugin.tensor_files import read_tensors

_COPIES = ("pre_encoder_bias._bias_reference", "post_decoder_bias._bias_reference")


def read(files: SourceFiles) -> ReadSAE:
    """Read a DN-CBM SAE, with the latents' names if ``concept_names.csv`` lies beside it."""
    tensors = StateDict(read_tensors(files.main("sparse_autoencoder_final.pt", "*.pt")))
    bias = tensors.take("tied_bias", *_COPIES)
    for copy in _COPIES:
        other = tensors.find(copy)
        if other is not None and not torch.equal(other, bias):
            raise ValueError(f"{copy} differs from tied_bias; want three equal copies")
    weights = {
        "W_enc": _only(tensors.take("encoder._weight"), "encoder._weight").T,
        "b_enc": _only(tensors.take("encoder._bias"), "encoder._bias"),
        "W_dec": _only(tensors.take("decoder._weight"), "decoder._weight").T,
        "b_dec": _only(bias, "tied_bias"),
    }
    tensors.refuse_the_rest()
    metadata = {"hook_name": "hook_image_embed", "token_kind": "all"}
    found = ReadSAE("standard", weights, metadata=metadata)
    names = files.beside("concept_names.csv", levels=1)
    if names is not None:
        found.metadata["latent_names"] = _names(names, weights["b_enc"].shape[0])
    return found


def _only(tensor: Tensor, name: str) -> Tensor:
    if tensor.shape[0] != 1:
        raise ValueError(f"{name} holds {tensor.shape[0]} components; want 1")
    return tensor[0]


def _names(path: Path, n_latents: int) -> list[str | None]:
    """The words of a table (index, word), by latent."""
    names: list[str | None] = [None] * n_latents
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            if len(row) >= 2 and row[0].strip().isdigit() and int(row[0]) < n_latents:
                names[int(row[0])] = row[1].strip()
    return names


FORMAT = Format(
    "dn_cbm",
    "DN-CBM (Rao et al., ECCV 2024, arXiv 2407.14499)",
    "https://github.com/neuroexplicit-saar/Discover-then-Name",
    read,
)
