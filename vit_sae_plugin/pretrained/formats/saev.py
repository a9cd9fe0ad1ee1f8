"""saev: a line of JSON, then a state dict. Two formulas, five versions of the first line.

Until 2025-07-31 (its commit e7ca004): ``f = act((x − b_dec) W_enc + b_enc)``; since then
``f = act(x W_enc + b_enc)``. ``x̂ = f W_dec + b_dec``. The first line has no version (the formula
is the old one, and the published SAEs were trained on rows standardised by a mean and a scale that
are not in the file), version 1 (either formula), or 2 to 5 (the new one).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_sae_plugin.pretrained.format import Format
from vit_sae_plugin.pretrained.input_statistics import stated_statistics
from vit_sae_plugin.pretrained.read_sae import (
    ReadSAE,
    StateDict,
    for_each_latent,
    wanted_number,
    whole_number,
    written_plainly,
)
from vit_sae_plugin.pretrained.source_files import SourceFiles
from vit_sae_plugin.tensor_files import read_after_json_line

_NEW_FORMULA_SCHEMAS = (2, 3, 4, 5)


def read(
    files: SourceFiles,
    *,
    subtract_b_dec: bool | None = None,
    threshold: float | None = None,
    input_statistics: Any = None,
) -> ReadSAE:
    """Read an saev SAE.

    Args:
        files: where it is.
        subtract_b_dec: which formula it was trained with, for files of schema 1, which don't say.
        threshold: of a BatchTopK SAE whose file doesn't hold one.
        input_statistics: mean and scale of the rows it was trained on, for files without schema.
    """
    header, values = read_after_json_line(files.main("sae.pt", "*.pt"))
    schema = header.get("schema")
    settings = header if schema is None else header.get("cfg")
    if not isinstance(settings, Mapping):
        raise ValueError("its first line holds no settings ('cfg')")
    activation, parameters = _activation(header, settings, schema)
    tensors = StateDict(values)
    weights = {name: tensors.take(name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    architecture, own = "standard", {}
    if activation == "TopK":
        architecture, own = "signed_topk", {"k": wanted_number(parameters, None, "top_k")}
    elif activation == "BatchTopK":
        architecture = "jumprelu"
        found = tensors.number("activation.threshold") if threshold is None else threshold
        if found is None:
            raise ValueError(
                "it is a BatchTopK SAE without 'activation.threshold'; state threshold=…"
            )
        tensors.find("activation.threshold")
        weights["threshold"] = for_each_latent(found, weights["b_enc"])
    tensors.refuse_the_rest()
    d_in, d_sae = _widths(settings)
    metadata: dict[str, Any] = {}
    if schema is None:
        metadata["input_statistics"] = stated_statistics(
            input_statistics,
            weights["W_enc"].shape[0],
            "it is of the time when saev centred and scaled rows by numbers that it didn't keep",
        )
    elif input_statistics is not None:
        metadata["input_statistics"] = stated_statistics(
            input_statistics, weights["W_enc"].shape[0], ""
        )
    return ReadSAE(
        architecture,
        weights,
        own | {"apply_b_dec_to_input": _subtracts(schema, subtract_b_dec)},
        metadata,
        stated={"d_in": d_in, "d_sae": d_sae},
        training=written_plainly(dict(header)),
    )


def _activation(
    header: Mapping[str, Any], settings: Mapping[str, Any], schema: Any
) -> tuple[str, Mapping[str, Any]]:
    if schema is None:
        return "Relu", {}
    if schema != 1 and schema not in _NEW_FORMULA_SCHEMAS:
        raise ValueError(f"its schema is {schema!r}; want none, or 1 to 5")
    if "activation" in settings:
        found = settings["activation"]
        if not isinstance(found, Mapping):
            raise ValueError(f"its activation is {found!r}; want a class and its parameters")
        name, parameters = found.get("cls"), found.get("params") or {}
    else:
        name, parameters = header.get("cls") if schema == 1 else None, settings
    if name not in ("Relu", "TopK", "BatchTopK"):
        raise ValueError(f"its activation is {name!r}; want Relu, TopK or BatchTopK")
    return name, parameters


def _subtracts(schema: Any, stated: bool | None) -> bool:
    if stated is not None:
        return stated
    if schema == 1:
        raise ValueError(
            "files of schema 1 were written before and after 2025-07-31, when encoding stopped "
            "subtracting b_dec; state subtract_b_dec=True (before) or False (since)"
        )
    return schema is None


def _widths(settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    d_in = whole_number(settings, "d_model", "d_vit")
    d_sae = whole_number(settings, "d_sae")
    factor = whole_number(settings, "exp_factor")
    if d_sae is None and d_in is not None and factor is not None:
        d_sae = d_in * factor
    return d_in, d_sae


FORMAT = Format(
    "saev",
    "saev (Stevens et al., arXiv 2502.06755)",
    "https://github.com/OSU-NLP-Group/saev",
    read,
)
