"""ViSAEBench: a folder with ``sae.pt`` (or safetensors) and ``config.json`` (or YAML).

``codes = ReLU(x Wᵀ + b)``, kept where ``≥ threshold`` (BatchTopK), the k largest (TopK), or where
``> thresholds`` (JumpReLU); ``x̂ = codes D`` (+ bias). Rows were centred per dimension and divided
by one deviation, neither of which is in the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vit_sae_plugin.pretrained.format import Format
from vit_sae_plugin.pretrained.input_statistics import stated_statistics
from vit_sae_plugin.pretrained.model_names import after_block, hugging_face_model, token_grid
from vit_sae_plugin.pretrained.read_sae import (
    ReadSAE,
    StateDict,
    at_least,
    for_each_latent,
    settings_of,
    wanted_number,
    whole_number,
    written_plainly,
)
from vit_sae_plugin.pretrained.source_files import SourceFiles
from vit_sae_plugin.tensor_files import read_tensors

_BACKBONES: dict[str, dict[str, Any]] = {
    "clip_vitb16": hugging_face_model("openai/clip-vit-base-patch16"),
    "siglip_vitb16": {
        "model_name": "hf:google/siglip-base-patch16-224",
        **token_grid(224, 16, n_prefix_tokens=0),
    },
    "mae_vitb16": {
        "model_name": "timm:vit_base_patch16_224.mae",
        "model_from_pretrained_kwargs": {"pretrained": True},
        **token_grid(224, 16, n_prefix_tokens=1),
    },
    "deit_vitb16": {
        "model_name": "timm:deit_base_patch16_224",
        "model_from_pretrained_kwargs": {"pretrained": True},
        **token_grid(224, 16, n_prefix_tokens=1),
    },
}
"""Not DINOv2: there the rows are taken after the final norm, which is no block's output."""


def read(
    files: SourceFiles, *, threshold: float | None = None, input_statistics: Any = None
) -> ReadSAE:
    """Read an SAE of ViSAEBench.

    Args:
        files: where it is.
        threshold: of a BatchTopK SAE whose files hold none.
        input_statistics: mean and scale of the rows it was trained on.
    """
    tensors = StateDict(read_tensors(files.main("sae.pt", "model.safetensors", "model.pt", "*.pt")))
    settings = _config(files.beside("config.json", "config.yaml", "config.yml"))
    weights = _weights(tensors)
    architecture, own = _function(settings, tensors, weights, threshold)
    tensors.refuse_the_rest()
    metadata = _what_it_reads(settings)
    metadata["input_statistics"] = stated_statistics(
        input_statistics,
        weights["W_enc"].shape[0],
        "its rows were centred and scaled by numbers that are not in its files",
    )
    return ReadSAE(
        architecture,
        weights,
        own,
        metadata,
        stated={
            "d_in": whole_number(settings, "d_model", "input_dim"),
            "d_sae": whole_number(settings, "dict_size", "hidden_dim"),
        },
        training=written_plainly(settings),
    )


def _weights(tensors: StateDict) -> dict[str, Tensor]:
    multiplier = tensors.number("dictionary.multiplier")
    decoder = tensors.take("decoder.weight", "dictionary._weights")
    if multiplier is not None:
        decoder = decoder * decoder.new_tensor(multiplier).exp()
    bias = tensors.find("decoder.bias")
    return {
        "W_enc": tensors.take("encoder.weight", "encoder.final_block.0.weight").T,
        "b_enc": tensors.take("encoder.bias", "encoder.final_block.0.bias"),
        "W_dec": decoder,
        "b_dec": decoder.new_zeros(decoder.shape[-1]) if bias is None else bias,
    }


def _function(
    settings: Mapping[str, Any],
    tensors: StateDict,
    weights: dict[str, Tensor],
    threshold: float | None,
) -> tuple[str, dict[str, Any]]:
    names = ("activation", "sae_type", "architecture")
    activation = str(next((settings[n] for n in names if settings.get(n)), None)).lower()
    # b_dec is added on the way out only
    own: dict[str, Any] = {"apply_b_dec_to_input": False}
    if activation == "topk":
        return "topk", own | {"k": wanted_number(settings, None, "k")}
    if activation == "batchtopk":
        kept = settings.get("threshold", tensors.number("_running_threshold"))
        found = threshold if threshold is not None else kept
        if found is None:
            raise ValueError("it is a BatchTopK SAE without a threshold; state threshold=…")
        weights["threshold"] = at_least(for_each_latent(found, weights["b_enc"]))
        return "jumprelu", own
    if activation == "jumprelu":
        weights["threshold"] = tensors.take("jump_thresholds", "thresholds")
        return "jumprelu", own
    raise ValueError(f"its activation is {activation!r}; want 'topk', 'batchtopk' or 'jumprelu'")


def _config(path: Path | None) -> Mapping[str, Any]:
    if path is None:
        raise ValueError("there is no config.json or config.yaml beside it")
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        return settings_of(json.loads(text) if path.suffix == ".json" else yaml.safe_load(text))
    except (json.JSONDecodeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"its {path.name} is damaged ({error})") from None


def _what_it_reads(settings: Mapping[str, Any]) -> dict[str, Any]:
    backbone = settings.get("backbone", settings.get("backbone_name"))
    found = dict(_BACKBONES.get(str(backbone), {}))
    found["token_kind"] = "patches"
    layer = whole_number(settings, "layer")
    if layer is not None and found.get("model_name"):
        found["hook_name"] = after_block(layer)
    return found


FORMAT = Format(
    "visaebench",
    "ViSAEBench",
    "https://github.com/vraj130/visaebench",
    read,
)
