"""dictionary_learning: ``trainer_i/ae.pt`` and ``config.json``; the class decides the formula.

``encoder.weight`` is ``[d_sae, d_in]`` and ``decoder.weight`` ``[d_in, d_sae]``, the transposes of
SAELens's. With backups on, ``ae.pt`` is an envelope ``{"step", "ae", "optimizer", "config",
"norm_factor"}`` whose biases are in units of the normalised rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vit_sae_plugin.pretrained.format import Format
from vit_sae_plugin.pretrained.read_sae import (
    ReadSAE,
    StateDict,
    for_each_latent,
    settings_of,
    wanted_number,
    whole_number,
    written_plainly,
)
from vit_sae_plugin.pretrained.source_files import SourceFiles
from vit_sae_plugin.tensor_files import read_tensors

# what scale_biases multiplies there when rows were divided by a norm in training
_BIASES = ("b_enc", "b_dec", "b_gate", "b_mag", "threshold")
_SPELLINGS = {"MatroyshkaBatchTopKSAE": "MatryoshkaBatchTopKSAE"}


def read(
    files: SourceFiles,
    *,
    dict_class: str | None = None,
    k: int | None = None,
    threshold: float | None = None,
    use_threshold: bool = False,
) -> ReadSAE:
    """Read a dictionary of dictionary_learning.

    Args:
        files: where it is.
        dict_class: its class, such as ``"AutoEncoderTopK"``, where there is no ``config.json``.
        k: of a top-k dictionary, where the file doesn't say.
        threshold: of a BatchTopK or Matryoshka one, where the file holds none.
        use_threshold: encode an ``AutoEncoderTopK`` by its threshold instead of by its k.
    """
    contents = read_tensors(files.main("ae.pt", "ae_*.pt", "*.pt", "*.safetensors"))
    settings = _config(files.beside("config.json", levels=1))
    factor = None
    if isinstance(contents, Mapping) and "ae" in contents:
        settings = settings | settings_of(contents.get("config") or {})
        factor, contents = contents.get("norm_factor"), contents["ae"]
    name = settings.get("dict_class", dict_class)
    return _read(contents, settings, name, k, threshold, use_threshold, factor)


def _read(
    contents: Any,
    settings: Mapping[str, Any],
    dict_class: Any,
    k: int | None,
    threshold: float | None,
    use_threshold: bool = False,
    factor: Any = None,
) -> ReadSAE:
    """The SAE that these tensors of this class are, whatever the folder around it."""
    # a BatchTopK's k is that of training, and the groups nest only its losses
    tensors = StateDict(contents, ignored=("group_sizes",))
    name = _SPELLINGS.get(str(dict_class), dict_class)
    if name not in _WEIGHTS:
        raise ValueError(
            f"its class is {name!r}; want one of {', '.join(_WEIGHTS)}"
            + ("; state dict_class=…" if name is None else "")
        )
    weights = _WEIGHTS[name](tensors)
    own: dict[str, Any] = {}
    architecture = _ARCHITECTURES[name]
    kept_k, kept_threshold = tensors.number("k"), None
    if name != "JumpReluAutoEncoder":
        kept_threshold = tensors.number("threshold")
    if architecture == "topk" and use_threshold:
        architecture = "jumprelu"
    if architecture == "topk":
        stated = k if k is not None else None if kept_k is None else int(kept_k)
        own["k"] = wanted_number(settings, stated, "k")
    if architecture == "jumprelu" and "threshold" not in weights:
        weights["threshold"] = for_each_latent(
            _threshold(kept_threshold, threshold), weights["b_enc"]
        )
    tensors.refuse_the_rest()
    if name in ("JumpReluAutoEncoder", "AutoEncoderNew"):
        own["apply_b_dec_to_input"] = False
    if factor is not None:
        for bias in weights.keys() & set(_BIASES):
            weights[bias] = weights[bias] * float(factor)
    return ReadSAE(
        architecture,
        weights,
        own,
        metadata=_what_it_reads(settings),
        stated={
            "d_in": whole_number(settings, "activation_dim"),
            "d_sae": whole_number(settings, "dict_size"),
        },
        training=written_plainly(dict(settings)),
    )


def _linear(tensors: StateDict, b_dec: str, **more: str) -> dict[str, Tensor]:
    return {
        "W_enc": tensors.take("encoder.weight").T,
        "W_dec": tensors.take("decoder.weight").T,
        "b_dec": tensors.take(b_dec),
        **{name: tensors.take(theirs) for name, theirs in more.items()},
    }


def _direct(tensors: StateDict, *more: str) -> dict[str, Tensor]:
    return {name: tensors.take(name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", *more)}


_WEIGHTS = {
    "AutoEncoder": lambda t: _linear(t, "bias", b_enc="encoder.bias"),
    "AutoEncoderNew": lambda t: _linear(t, "decoder.bias", b_enc="encoder.bias"),
    "AutoEncoderTopK": lambda t: _linear(t, "b_dec", b_enc="encoder.bias"),
    "BatchTopKSAE": lambda t: _linear(t, "b_dec", b_enc="encoder.bias"),
    "MatryoshkaBatchTopKSAE": lambda t: _direct(t),
    "JumpReluAutoEncoder": lambda t: _direct(t, "threshold"),
    "GatedAutoEncoder": lambda t: _linear(
        t, "decoder_bias", b_gate="gate_bias", b_mag="mag_bias", r_mag="r_mag"
    ),
}
_ARCHITECTURES = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
    "JumpReluAutoEncoder": "jumprelu",
    "GatedAutoEncoder": "gated",
}


def _threshold(kept: float | None, stated: float | None) -> float:
    if stated is not None:
        return stated
    if kept is None or kept < 0:
        raise ValueError(
            f"its threshold is {'missing' if kept is None else f'{kept:g}, that is, never set'}; "
            "state threshold=…"
        )
    return kept


def _config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"its config.json is damaged ({error})") from None
    return settings_of(config.get("trainer", config) if isinstance(config, dict) else config)


def _what_it_reads(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The model's name as it stands: which library loads it, the file doesn't say."""
    name = settings.get("lm_name")
    return {"model_name": name} if name else {}


FORMAT = Format(
    "dictionary_learning",
    "dictionary_learning (Marks, Karvonen and Mueller)",
    "https://github.com/saprmarks/dictionary_learning",
    read,
)
