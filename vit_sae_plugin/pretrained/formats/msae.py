"""MSAE: its settings are in the file's name, its input statistics in the file.

``{latents}_{inputs}_{activation}[_{k or λ}][_RW|_UW]_{tied}_{normalize}_{soft cap}_{data}….pth``
holds ``{"model", "mean_center", "scaling_factor", "target_norm"}``.
``f = act(((x − mean) · scale − pre_bias) encoder + latent_bias)``, and the inverse on the way out.
The stored scale (target norm over mean *squared* norm) is taken as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from vit_sae_plugin.pretrained.format import Format
from vit_sae_plugin.pretrained.input_statistics import stated_statistics, statistics_metadata
from vit_sae_plugin.pretrained.model_names import open_clip_model
from vit_sae_plugin.pretrained.read_sae import ReadSAE, StateDict, for_each_latent, written_plainly
from vit_sae_plugin.pretrained.source_files import SourceFiles
from vit_sae_plugin.tensor_files import read_tensors

_NESTED = ("RW", "UW")
_FLAGS = {"True": True, "False": False}
_GRAMMAR = "{latents}_{inputs}_{activation}[_{k}][_RW|_UW]_{tied}_{normalize}_{soft cap}_{data}.pth"


@dataclass
class _Name:
    """What an MSAE file's name says."""

    d_sae: int
    d_in: int
    activation: str
    k: int | None
    nested: str | None
    tied: bool
    normalize: bool
    soft_cap: float
    data: str


def read(
    files: SourceFiles,
    *,
    k: int | None = None,
    threshold: float | None = None,
    modality: str | None = None,
    input_statistics: Any = None,
) -> ReadSAE:
    """Read an MSAE, or one of its baselines.

    Args:
        files: where it is.
        k: of a nested SAE (``RW``, ``UW``): how many latents to keep; None: all that are positive,
            as its own code does. Of a TopK SAE: the name's.
        threshold: of a BatchTopK SAE, whose files don't hold one.
        modality: ``"image"`` or ``"text"``, where the name doesn't say.
        input_statistics: mean and scale, where the file doesn't hold them.
    """
    path = files.main("*.pth", "*.pt")
    name = _parse(PurePosixPath(files.main_name).name)
    contents = read_tensors(path)
    if not isinstance(contents, Mapping) or "model" not in contents:
        raise ValueError("it holds no 'model'; want {'model', 'mean_center', 'scaling_factor'}")
    tensors = StateDict(contents["model"], ignored=("latents_activation_frequency",))
    decoder = tensors.find("decoder")
    if (decoder is None) != name.tied:
        raise ValueError(
            f"its name says tied={name.tied}, but it holds {'no' if name.tied is False else 'a'} "
            "decoder"
        )
    encoder = tensors.take("encoder")
    weights = {
        "W_enc": encoder,
        "b_enc": tensors.take("latent_bias"),
        "W_dec": encoder.T if decoder is None else decoder,
        "b_dec": tensors.take("pre_bias"),
    }
    architecture, settings = _function(name, k)
    if name.activation == "JumpReLU":
        weights["threshold"] = tensors.take("activation.log_threshold").exp()
    if name.activation in ("BatchTopK", "BatchTopKReLU"):
        weights["threshold"] = _stated_threshold(threshold, weights["b_enc"])
    tensors.refuse_the_rest()
    return ReadSAE(
        architecture,
        weights,
        settings,
        metadata=_what_it_reads(name)
        | {"input_statistics": _statistics(contents, name, modality, input_statistics)},
        stated={"d_in": name.d_in, "d_sae": name.d_sae},
        training=asdict(name) | {"target_norm": written_plainly(contents.get("target_norm"))},
    )


def _function(name: _Name, k: int | None) -> tuple[str, dict[str, Any]]:
    """The architecture that computes what the name says, and its settings."""
    norm: dict[str, Any] = {"normalize_activations": "layer_norm"} if name.normalize else {}
    cap: dict[str, Any] = {"soft_cap": name.soft_cap} if name.soft_cap else {}
    if name.activation == "ReLU":
        return ("matryoshka_topk", {"k": None} | cap) if cap else ("standard", norm)
    if name.activation in ("JumpReLU", "BatchTopK", "BatchTopKReLU"):
        if cap:
            raise ValueError(f"its {name.activation} has a soft cap, which SAELens's doesn't have")
        return "jumprelu", norm
    if name.activation == "TopK":
        if cap or name.nested:
            raise ValueError(
                "its TopK keeps negative values, which the nested architecture doesn't"
            )
        return "signed_topk", {"k": name.k if k is None else k} | norm
    if name.activation != "TopKReLU":
        raise ValueError(
            f"its activation is {name.activation!r}; want ReLU, JumpReLU, TopK, TopKReLU, "
            "BatchTopK or BatchTopKReLU"
        )
    if name.nested or cap:
        if norm:
            raise ValueError(
                "it normalises each row and is used at several k, which SAELens's row "
                "normalisation can't"
            )
        return "matryoshka_topk", {"k": k if name.nested or k is not None else name.k} | cap
    return "topk", {"k": name.k if k is None else k} | norm


def _stated_threshold(threshold: float | None, like: Tensor) -> Tensor:
    if threshold is None:
        raise ValueError(
            "it is a BatchTopK SAE, whose file holds no threshold for single images; state "
            "threshold=…"
        )
    return for_each_latent(threshold, like)


def _statistics(
    contents: Mapping[str, Any], name: _Name, modality: str | None, stated: Any
) -> dict[str, Any] | None:
    if modality is None:
        words = set(re.split(r"[_\W]+", name.data.lower()))
        said = [word for word in ("image", "text") if word in words]
        if len(said) != 1:
            raise ValueError(
                "its name doesn't say whether it reads image or text embeddings; state "
                "modality='image' or 'text'"
            )
        modality = said[0]
    mean, scale = contents.get("mean_center"), contents.get("scaling_factor")
    if stated is not None or mean is None or scale is None:
        why = "it holds no 'mean_center' and 'scaling_factor', by which its input was standardised"
        return stated_statistics(stated, name.d_in, why, modality)
    if isinstance(mean, bool):
        if mean:
            raise ValueError(
                "its 'mean_center' is True instead of the mean; state input_statistics"
            )
        mean = 0.0
    return statistics_metadata(torch.as_tensor(mean), scale, name.d_in, modality)


def _parse(file_name: str) -> _Name:
    parts = re.sub(r"\.pth?$", "", file_name).split("_")
    flag = next((i for i, part in enumerate(parts) if part in _FLAGS), len(parts))
    try:
        latents, inputs, activation, *extra = parts[:flag]
        tied, normalize, cap = parts[flag : flag + 3]
        nested = extra.pop() if extra and extra[-1] in _NESTED else None
        needs_k = "TopK" in activation
        return _Name(
            d_sae=int(latents),
            d_in=int(inputs),
            activation=activation,
            k=int(extra.pop(0)) if needs_k else None,
            nested=nested,
            tied=_FLAGS[tied],
            normalize=_FLAGS[normalize],
            soft_cap=float(cap),
            data="_".join(parts[flag + 3 :]),
        )
    except (ValueError, KeyError, IndexError):
        raise ValueError(
            f"an MSAE's settings are in its name, and {file_name!r} isn't {_GRAMMAR}; give the "
            "file its first name again"
        ) from None


def _what_it_reads(name: _Name) -> dict[str, Any]:
    found: dict[str, Any] = {"hook_name": "hook_image_embed", "token_kind": "all"}
    model = re.search(r"ViT-([BL])[~/-](\d\d)(?!\d)", name.data)
    if model:
        found |= open_clip_model(f"ViT-{model[1]}-{model[2]}", "openai")
    return found


FORMAT = Format(
    "msae",
    "MSAE (Zaigrajew et al., ICML 2025, arXiv 2502.20578)",
    "https://github.com/WolodjaZ/MSAE",
    read,
    licence="MIT",
)
