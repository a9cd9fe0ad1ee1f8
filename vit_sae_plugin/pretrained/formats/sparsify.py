"""sparsify: a folder with ``cfg.json`` and ``sae.safetensors``.

``f = TopK_k(ReLU((x − b_dec) Wᵀ + b))``, ``x̂ = f W_dec + b_dec``; a transcoder doesn't subtract
``b_dec``. Older, "signed" ones keep the k largest by magnitude, with their sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_sae_plugin.pretrained.format import Format
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


def read(files: SourceFiles, *, k: int | None = None) -> ReadSAE:
    """Read a sparse coder of sparsify.

    Args:
        files: where it is.
        k: latents kept for each row, where ``cfg.json`` doesn't say.
    """
    tensors = StateDict(read_tensors(files.main("sae.safetensors", "*.safetensors")))
    settings = _config(files.beside("cfg.json"))
    activation = settings.get("activation", "topk")
    if activation != "topk":
        raise ValueError(f"its activation is {activation!r}; want 'topk'")
    for name in ("skip_connection", "embed_skip", "gram_lookup"):
        if settings.get(name):
            raise ValueError(f"its {name} is on, which no architecture of SAELens has with top-k")
    weights = {
        "W_enc": tensors.take("encoder.weight").T,
        "b_enc": tensors.take("encoder.bias"),
        "W_dec": tensors.take("W_dec"),
        "b_dec": tensors.take("b_dec"),
    }
    tensors.refuse_the_rest()
    d_in, d_sae = whole_number(settings, "d_in"), whole_number(settings, "num_latents")
    factor = whole_number(settings, "expansion_factor")
    if not d_sae:
        d_sae = d_in * factor if d_in is not None and factor is not None else None
    return ReadSAE(
        "abstopk" if settings.get("signed") else "topk",
        weights,
        {
            "k": wanted_number(settings, k, "k"),
            "apply_b_dec_to_input": not settings.get("transcode"),
        },
        stated={"d_in": d_in, "d_sae": d_sae},
        training=written_plainly(settings),
    )


def _config(path: Path | None) -> Mapping[str, Any]:
    if path is None:
        raise ValueError("there is no cfg.json beside it, which says what it computes")
    try:
        return settings_of(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"its cfg.json is damaged ({error})") from None


FORMAT = Format("sparsify", "sparsify (EleutherAI)", "https://github.com/EleutherAI/sparsify", read)
