"""ViT-Prisma: a folder with ``config.json`` and a plain state dict, or older envelopes.

``f = act((norm(x) − b_dec) W_enc + b_enc)`` with ReLU or top-k, or gated; ``norm`` is none, per
row (mean and unbiased deviation, undone afterwards), or to norm √d.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from vit_sae_plugin.pretrained.format import Format
from vit_sae_plugin.pretrained.model_names import hugging_face_model, open_clip_model
from vit_sae_plugin.pretrained.read_sae import (
    ReadSAE,
    StateDict,
    settings_of,
    wanted_number,
    whole_number,
    written_plainly,
)
from vit_sae_plugin.pretrained.source_files import SourceFiles
from vit_sae_plugin.tensor_files import read_tensors

_NORMALIZATIONS = {
    None: "none",
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}
_NOT_STATED = object()


def read(
    files: SourceFiles,
    *,
    activation: str | None = None,
    k: int | None = None,
    normalize_activations: Any = _NOT_STATED,
) -> ReadSAE:
    """Read a Prisma SAE.

    Args:
        files: where it is.
        activation: ``"relu"`` or ``"topk"``, where the settings don't say.
        k: of a top-k SAE, where they don't say.
        normalize_activations: ``"none"``, ``"layer_norm"`` or ``"constant_norm_rescale"``, where
            they don't say.
    """
    path = files.main("n_images_*.pt", "weights.pt", "*sae*.pt", "*.pt", "*.pth", "*.safetensors")
    _refuse_sae_lens(files)
    settings, values = _parts(read_tensors(path), files.beside("config.json"))
    if settings.get("is_transcoder"):
        raise ValueError("it is a transcoder; this reader opens autoencoders")
    tensors = StateDict(values)
    architecture, weights = _weights(settings, tensors)
    own: dict[str, Any] = {"normalize_activations": _normalization(settings, normalize_activations)}
    if architecture == "standard":
        name = settings.get("activation_fn_str", activation)
        if name == "topk":
            architecture = "topk"
            own["k"] = wanted_number(dict(settings.get("activation_fn_kwargs") or {}), k, "k")
        elif name != "relu":
            raise ValueError(
                f"its activation is {name!r}; want 'relu' or 'topk'"
                + ("; state activation=…" if name is None else "")
            )
    tensors.refuse_the_rest()
    return ReadSAE(
        architecture,
        weights,
        own,
        metadata=_what_it_reads(settings),
        stated={
            "d_in": whole_number(settings, "d_in"),
            "d_sae": whole_number(settings, "d_sae"),
        },
        training=written_plainly(settings),
    )


def _refuse_sae_lens(files: SourceFiles) -> None:
    if Path(files.main_name).name == "sae_weights.safetensors":
        raise ValueError(
            "this is a folder of SAELens itself; open it by SAE.load_from_disk(folder) or "
            "SAE.from_pretrained(repository, folder)"
        )


def _parts(contents: Any, config: Path | None) -> tuple[dict[str, Any], Any]:
    """Settings and tensors, from whichever of the three layouts this is."""
    if not isinstance(contents, Mapping):
        raise ValueError(f"it holds a {type(contents).__name__}; want named tensors")
    if "state_dict" in contents:
        return settings_of(contents.get("cfg")), contents["state_dict"]
    if "autoencoder" in contents:
        return settings_of(contents.get("config")), contents["autoencoder"].get("state_dict")
    if config is None:
        raise ValueError("there is no config.json beside it, which says what it computes")
    try:
        return settings_of(json.loads(config.read_text(encoding="utf-8"))), contents
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"its config.json is damaged ({error})") from None


def _weights(settings: Mapping[str, Any], tensors: StateDict) -> tuple[str, dict[str, Any]]:
    architecture = settings.get("architecture", "gated" if "b_gate" in tensors else "standard")
    weights = {name: tensors.take(name) for name in ("W_enc", "W_dec", "b_dec")}
    if architecture == "standard":
        return architecture, weights | {"b_enc": tensors.take("b_enc")}
    if architecture == "gated":
        tensors.find("b_enc")  # stored, and used for nothing
        return architecture, weights | {
            name: tensors.take(name) for name in ("b_gate", "b_mag", "r_mag")
        }
    raise ValueError(f"its architecture is {architecture!r}; want 'standard' or 'gated'")


def _normalization(settings: Mapping[str, Any], stated: Any) -> str:
    found = settings.get("normalize_activations", stated)
    if found is _NOT_STATED:
        raise ValueError(
            "its settings don't say how rows are normalised; state normalize_activations='none', "
            "'layer_norm' or 'constant_norm_rescale'"
        )
    if found not in _NORMALIZATIONS:
        raise ValueError(
            f"its rows are normalised by {found!r}; want none, 'layer_norm' or "
            "'constant_norm_rescale'"
        )
    return _NORMALIZATIONS[found]


def _what_it_reads(settings: Mapping[str, Any]) -> dict[str, Any]:
    name = settings.get("model_name")
    found: dict[str, Any] = {}
    if isinstance(name, str):
        if name.startswith("open-clip:"):
            found |= open_clip_model("hf-hub:" + name.removeprefix("open-clip:"))
        else:
            found |= hugging_face_model(name) if "/" in name else {"model_name": name}
    layer, subtype = whole_number(settings, "hook_point_layer"), settings.get("layer_subtype")
    if layer is not None and subtype:
        found["hook_name"] = f"blocks.{layer}.{subtype}"
    kinds = ("cls_token_only", "use_patches_only")
    if any(kind in settings for kind in kinds):
        found["token_kind"] = (
            "cls"
            if settings.get("cls_token_only")
            else "patches"
            if settings.get("use_patches_only")
            else "all"
        )
    n_tokens = whole_number(settings, "context_size")
    side = isqrt(max((n_tokens or 0) - 1, 0))
    if n_tokens and n_tokens > 1 and side * side == n_tokens - 1:
        found |= {"n_prefix_tokens": 1, "n_tokens": n_tokens, "grid": [side, side]}
    return found


FORMAT = Format(
    "prisma",
    "ViT-Prisma (Joseph et al., arXiv 2504.19475)",
    "https://github.com/Prisma-Multimodal/ViT-Prisma",
    read,
)
