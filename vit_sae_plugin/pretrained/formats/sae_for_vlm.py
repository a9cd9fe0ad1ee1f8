"""sae-for-vlm: dictionary_learning's files in folders whose names say what was read.

``{data}_train_activations_{model}_{layer}_{point}_{sae}_{k}_x{expansion}/trainer_0/checkpoints/…``;
model and layer are empty in ``config.json``.
"""

from __future__ import annotations

import re
from typing import Any

from vit_sae_plugin.pretrained.format import Format
from vit_sae_plugin.pretrained.formats import dictionary_learning
from vit_sae_plugin.pretrained.model_names import after_block, hugging_face_model
from vit_sae_plugin.pretrained.read_sae import ReadSAE
from vit_sae_plugin.pretrained.source_files import SourceFiles

_FOLDER = re.compile(
    r"(?P<data>[^/]+)_train_activations_(?P<model>.+?)_(?P<layer>-?\d+)_"
    r"(?P<point>post_mlp_residual|post_projection)_(?P<sae>[a-z_]+)_(?P<k>\d+)_x(?P<expansion>\d+)"
)
_CLASSES = {
    "batch_top_k": "BatchTopKSAE",
    "matroyshka_batch_top_k": "MatryoshkaBatchTopKSAE",
    "matryoshka_batch_top_k": "MatryoshkaBatchTopKSAE",
    "top_k": "AutoEncoderTopK",
    "standard": "AutoEncoder",
    "jumprelu": "JumpReluAutoEncoder",
}
_OWNERS = {"clip": "openai", "siglip": "google"}


def read(
    files: SourceFiles,
    *,
    dict_class: str | None = None,
    k: int | None = None,
    threshold: float | None = None,
) -> ReadSAE:
    """Read an SAE of sae-for-vlm.

    Args:
        files: where it is.
        dict_class: its class, such as ``"BatchTopKSAE"``, where neither settings nor folder say.
        k: of a top-k SAE, where the file doesn't say.
        threshold: of a BatchTopK or Matryoshka SAE, where the file holds none.
    """
    path = files.main("ae_*.pt", "ae.pt", "*.pt")
    del path  # the files below find it again: it is the one that was named
    folder = _FOLDER.search(files.main_path)
    if dict_class is None and folder is not None:
        dict_class = _CLASSES.get(folder["sae"])
    found = dictionary_learning.read(files, dict_class=dict_class, k=k, threshold=threshold)
    if folder is not None:
        found.metadata |= _what_it_reads(folder, files.main_path)
        found.training |= {"data": folder["data"], "expansion_factor": int(folder["expansion"])}
    return found


def _what_it_reads(folder: re.Match[str], path: str) -> dict[str, Any]:
    owner = _OWNERS.get(folder["model"].split("-")[0])
    name = f"{owner}/{folder['model']}" if owner else folder["model"]
    found = hugging_face_model(name) if owner else {"model_name": name}
    if folder["point"] == "post_projection":
        return found | {"hook_name": "hook_image_embed", "token_kind": "all"}
    found["token_kind"] = "all" if "/random_k_" in path else "cls"
    layer = int(folder["layer"])
    return found | ({"hook_name": after_block(layer)} if layer >= 0 else {})


FORMAT = Format(
    "sae_for_vlm",
    "sae-for-vlm (Pach et al., arXiv 2504.02821)",
    "https://github.com/ExplainableML/sae-for-vlm",
    read,
)
