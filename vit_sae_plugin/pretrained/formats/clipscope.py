"""CLIP-Scope: top-k without ReLU and without an encoder bias.

``{"n_features", "d_in", "k", "model_state_dict": {"pre_b", "enc", "dec"}}``;
``f = TopK_k((x − pre_b) enc)``, whose values may be negative, ``x̂ = f dec + pre_b``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vit_sae_plugin.pretrained.format import Format
from vit_sae_plugin.pretrained.model_names import after_block, token_grid
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

_MODEL = "hf:laion/CLIP-ViT-L-14-laion2B-s32B-b82K"
_FOLDER = re.compile(r"(\d+)_resid")


def read(files: SourceFiles, *, k: int | None = None) -> ReadSAE:
    """Read a CLIP-Scope SAE.

    Args:
        files: where it is.
        k: latents kept for each token, where the file doesn't say.
    """
    contents = read_tensors(files.main("*.pt"))
    if not isinstance(contents, Mapping) or "model_state_dict" not in contents:
        raise ValueError("it holds no 'model_state_dict'")
    tensors = StateDict(contents["model_state_dict"])
    encoder = tensors.take("enc")
    weights = {
        "W_enc": encoder,
        "b_enc": encoder.new_zeros(encoder.shape[-1]),
        "W_dec": tensors.take("dec"),
        "b_dec": tensors.take("pre_b"),
    }
    tensors.refuse_the_rest()
    settings = settings_of({n: v for n, v in contents.items() if not n.endswith("state_dict")})
    return ReadSAE(
        "signed_topk",
        weights,
        {"k": wanted_number(settings, k, "k")},
        metadata=_what_it_reads(files),
        stated={
            "d_in": whole_number(settings, "d_in"),
            "d_sae": whole_number(settings, "n_features"),
        },
        training=written_plainly(settings),
    )


def _what_it_reads(files: SourceFiles) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model_name": _MODEL,
        "token_kind": "all",
        **token_grid(224, 14, n_prefix_tokens=1),
    }
    layer = _FOLDER.search(files.main_path)
    return found | {"hook_name": after_block(int(layer[1]))} if layer else found


FORMAT = Format(
    "clipscope",
    "CLIP-Scope (Ewington-Pitsos and Goyal, 2024)",
    "https://huggingface.co/lewington/CLIP-ViT-L-scope",
    read,
)
