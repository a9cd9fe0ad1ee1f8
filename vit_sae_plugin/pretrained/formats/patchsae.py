"""PatchSAE: a pickled configuration object beside a state dict.

``{"cfg" or "config": ViTSAERunnerConfig, "state_dict"}``, in ``.pt``, ``.pkl`` or ``.pkl.gz``.
``f = ReLU((x − b_dec) W_enc + b_enc)``, ``x̂ = f W_dec + b_dec``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_sae_plugin.pretrained.format import Format
from vit_sae_plugin.pretrained.model_names import after_block, hugging_face_model, n_blocks
from vit_sae_plugin.pretrained.read_sae import (
    ReadSAE,
    StateDict,
    settings_of,
    whole_number,
    written_plainly,
)
from vit_sae_plugin.pretrained.source_files import SourceFiles
from vit_sae_plugin.tensor_files import read_tensors


def read(files: SourceFiles) -> ReadSAE:
    """Read a PatchSAE; there are no options."""
    contents = read_tensors(
        files.main("*sparse_autoencoder*.pt", "*.pt", "*.pkl", "*.pkl.gz", "*.pth")
    )
    if not isinstance(contents, Mapping) or "state_dict" not in contents:
        raise ValueError("it holds no 'state_dict'; want {'cfg', 'state_dict'}")
    config = contents.get("cfg", contents.get("config"))
    if config is None:
        raise ValueError("it holds no settings ('cfg' or 'config')")
    settings = settings_of(config)
    if settings.get("gated_sae"):
        raise ValueError("gated_sae is True, which PatchSAE's own code doesn't compute")
    tensors = StateDict(contents["state_dict"])
    weights = {name: tensors.take(name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    tensors.refuse_the_rest()
    return ReadSAE(
        "standard",
        weights,
        metadata=_what_it_reads(settings),
        stated={
            "d_in": whole_number(settings, "d_in"),
            "d_sae": whole_number(settings, "d_sae"),
        },
        training=written_plainly(settings),
    )


def _what_it_reads(settings: Mapping[str, Any]) -> dict[str, Any]:
    model = settings.get("model_name")
    found = hugging_face_model(model)
    layer = whole_number(settings, "block_layer")
    if layer is not None and layer < 0:
        blocks = n_blocks(model)
        layer = None if blocks is None else blocks + layer
    if layer is not None and settings.get("module_name") == "resid":
        found["hook_name"] = after_block(layer)
    if isinstance(settings.get("class_token"), bool):
        found["token_kind"] = "cls" if settings["class_token"] else "all"
    return found


FORMAT = Format(
    "patchsae",
    "PatchSAE (Lim et al., ICLR 2025, arXiv 2412.05276)",
    "https://github.com/dynamical-inference/patchsae",
    read,
)
