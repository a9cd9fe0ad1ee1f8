"""overcomplete: a whole pickled module, or its state dict, which lacks half of what it computes.

``codes = ReLU(batch norm(x Wᵀ + b))``, then TopK, BatchTopK (``codes ≥ threshold``) or Jump
(``codes ≥ exp(thresholds)``); ``x̂ = codes D``. ``D`` are the stored atoms, scaled to norm 1 (or
otherwise), times ``exp(multiplier)``; in an archetypal SAE ``(W C + Relax) exp(multiplier)``, rows
of ``W`` positive and summing to 1. There is no decoder bias. A module knows its kind, its ``k``,
its threshold and its normalisation; a state dict doesn't, and the user must state them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vit_sae_plugin.inert_pickle import Inert
from vit_sae_plugin.pretrained.format import Format
from vit_sae_plugin.pretrained.read_sae import (
    ReadSAE,
    StateDict,
    at_least,
    for_each_latent,
    wanted_number,
    written_plainly,
)
from vit_sae_plugin.pretrained.source_files import SourceFiles
from vit_sae_plugin.tensor_files import read_tensors

_KINDS = {
    "SAE": "relu",
    "TopKSAE": "topk",
    "BatchTopKSAE": "batchtopk",
    "JumpSAE": "jump",
    "RATopKSAE": "topk",
    "RAJumpSAE": "jump",
}
_EPS = 1e-8
_BATCH_NORM_EPS = 1e-5


def read(
    files: SourceFiles,
    *,
    activation: str | None = None,
    k: int | None = None,
    threshold: float | None = None,
    normalization: str | None = None,
    delta: float | None = None,
) -> ReadSAE:
    """Read an overcomplete SAE.

    Args:
        files: where it is.
        activation: ``"topk"``, ``"batchtopk"``, ``"jump"`` or ``"relu"``, for a state dict.
        k: of a TopK SAE, for a state dict.
        threshold: the running threshold of a BatchTopK SAE, for a state dict.
        normalization: how atoms are scaled, ``"l2"``, ``"max_l2"``, ``"l1"``, ``"max_l1"`` or
            ``"identity"``, for a state dict whose atoms haven't norm 1.
        delta: largest norm of an archetypal atom's relaxation, for a state dict.
    """
    contents = read_tensors(files.main("*.pth", "*.pt", "*.safetensors", "*.pkl"))
    found = _from_module(contents) if isinstance(contents, Inert) else _Found(contents)
    found.state(activation, k, threshold, normalization, delta)
    tensors = StateDict(found.tensors, ignored=("num_batches_tracked",))
    W_enc, b_enc = _encoder(tensors, found.batch_norm_eps)
    atoms = _atoms(tensors, found)
    weights = {
        "W_enc": W_enc,
        "b_enc": b_enc,
        "W_dec": atoms,
        "b_dec": atoms.new_zeros(atoms.shape[-1]),
    }
    architecture, settings = _function(found, tensors, weights)
    tensors.refuse_the_rest()
    return ReadSAE(architecture, weights, settings, training=written_plainly(found.settings))


@dataclass
class _Found:
    """What a file says of itself."""

    tensors: Any
    activation: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    batch_norm_eps: float = _BATCH_NORM_EPS

    def state(
        self,
        activation: str | None,
        k: int | None,
        threshold: float | None,
        normalization: str | None,
        delta: float | None,
    ) -> None:
        """Add what the user states; it may not contradict the file."""
        if activation is not None and self.activation not in (None, activation):
            raise ValueError(
                f"activation={activation!r} is stated, but the file is a {self.activation!r} SAE"
            )
        self.activation = self.activation or activation
        stated = {
            "top_k": k,
            "running_threshold": threshold,
            "normalization": normalization,
            "delta": delta,
        }
        self.settings |= {name: value for name, value in stated.items() if value is not None}


def _from_module(module: Inert) -> _Found:
    name = module.class_name.rpartition(".")[2]
    if name not in _KINDS or not module.class_name.startswith("overcomplete."):
        raise ValueError(
            f"it is a pickled {module.class_name}; want one of overcomplete's "
            f"{', '.join(sorted(_KINDS))}"
        )
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors)
    dictionary = _part(module, "dictionary")
    settings = {
        "class": name,
        "top_k": module.fields.get("top_k"),
        "running_threshold": module.fields.get("running_threshold"),
        "delta": dictionary.fields.get("delta"),
        "normalization": _function_name(dictionary.fields.get("normalization")),
    }
    final = _part(module, "encoder", "final_block")
    norm = final.fields.get("_modules", {}).get("1")
    eps = norm.fields.get("eps", _BATCH_NORM_EPS) if isinstance(norm, Inert) else _BATCH_NORM_EPS
    return _Found(tensors, _KINDS[name], {n: v for n, v in settings.items() if v is not None}, eps)


def _collect(module: Inert, prefix: str, tensors: dict[str, Tensor]) -> None:
    for group in ("_parameters", "_buffers"):
        for name, value in (module.fields.get(group) or {}).items():
            if isinstance(value, Tensor):
                tensors[prefix + name] = value
    for name, inner in (module.fields.get("_modules") or {}).items():
        if isinstance(inner, Inert):
            _collect(inner, f"{prefix}{name}.", tensors)


def _part(module: Inert, *names: str) -> Inert:
    for name in names:
        inner = (module.fields.get("_modules") or {}).get(name)
        if not isinstance(inner, Inert):
            raise ValueError(f"its module has no part {'.'.join(names)!r}")
        module = inner
    return module


def _function_name(function: Any) -> str | None:
    """The normalisation that a pickled function's name stands for."""
    name = getattr(function, "class_name", "")
    if not name:
        return None
    return name.rpartition(".")[2].removeprefix("normalize_")


def _encoder(tensors: StateDict, eps: float) -> tuple[Tensor, Tensor]:
    """One linear layer, with a batch norm's running statistics folded into it."""
    block = "encoder.final_block"
    weight, bias = tensors.take(f"{block}.0.weight"), tensors.take(f"{block}.0.bias")
    scale = tensors.find(f"{block}.1.weight")
    if scale is None:
        return weight.T, bias
    if f"{block}.1.running_var" not in tensors:
        raise ValueError("its encoder ends in a layer norm, which no architecture of SAELens has")
    mean, variance = tensors.take(f"{block}.1.running_mean"), tensors.take(f"{block}.1.running_var")
    factor = scale.double() / (variance.double() + eps).sqrt()
    shift = tensors.take(f"{block}.1.bias").double() - mean.double() * factor
    folded = (weight.double() * factor[:, None]).T
    return folded.to(weight.dtype), (bias.double() * factor + shift).to(bias.dtype)


def _atoms(tensors: StateDict, found: _Found) -> Tensor:
    multiplier = tensors.number("dictionary.multiplier")
    points = tensors.find("dictionary.C")
    if points is not None:
        atoms = _archetypes(tensors, points, found.settings.get("delta"))
    else:
        atoms = _normalized(tensors.take("dictionary._weights"), found.settings)
    return atoms if multiplier is None else atoms * float(torch.tensor(multiplier).exp())


def _archetypes(tensors: StateDict, points: Tensor, delta: Any) -> Tensor:
    mixture = tensors.take("dictionary.W").relu()
    mixture = mixture / (mixture.sum(dim=-1, keepdim=True) + _EPS)
    relaxation = tensors.take("dictionary.Relax")
    norms = relaxation.norm(dim=-1, keepdim=True)
    if bool((norms > 0).any()):
        if delta is None:
            raise ValueError("nothing says how far its atoms may be relaxed; state delta=…")
        relaxation = relaxation * (float(delta) / norms).clamp(max=1)
    return mixture @ points + relaxation


def _normalized(atoms: Tensor, settings: Mapping[str, Any]) -> Tensor:
    name = settings.get("normalization")
    norms = atoms.norm(dim=1, keepdim=True)
    if name is None and bool(((norms - 1).abs() < 1e-2).all()):
        name = "l2"  # as good as done: the file was saved between a step and the next scaling
    sums = atoms.abs().sum(dim=1, keepdim=True)
    scaled = {
        "l2": lambda: atoms / (norms + _EPS),
        "max_l2": lambda: atoms / norms.max(),
        "l1": lambda: atoms / (sums + _EPS),
        "max_l1": lambda: atoms / sums.max(),
        "identity": lambda: atoms,
    }
    if name not in scaled:
        raise ValueError(
            f"its atoms have norms from {norms.min().item():.3g} to {norms.max().item():.3g} and "
            f"{'nothing says how they are scaled' if name is None else f'are scaled by {name!r}'}; "
            f"state normalization= one of {', '.join(map(repr, scaled))}"
        )
    return scaled[name]()


def _function(
    found: _Found, tensors: StateDict, weights: dict[str, Tensor]
) -> tuple[str, dict[str, Any]]:
    jumps = tensors.find("thresholds")
    if jumps is not None and found.activation in (None, "jump"):
        weights["threshold"] = at_least(jumps.exp())
        return "jumprelu", {}
    if found.activation == "relu":
        return "standard", {}
    if found.activation == "topk":
        return "topk", {"k": wanted_number({"k": found.settings.get("top_k")}, None, "k")}
    if found.activation == "batchtopk":
        threshold = found.settings.get("running_threshold")
        if threshold is None:
            raise ValueError(
                "it is a BatchTopK SAE without its running threshold; state threshold=…"
            )
        weights["threshold"] = at_least(for_each_latent(threshold, weights["b_enc"]))
        return "jumprelu", {}
    if found.activation == "jump":
        raise ValueError("it is a Jump SAE, but holds no tensor 'thresholds'")
    raise ValueError(
        f"its activation is {found.activation!r}, which a state dict doesn't say; state "
        "activation='topk', 'batchtopk', 'jump' or 'relu'"
        if found.activation is None
        else f"activation is {found.activation!r}; want 'topk', 'batchtopk', 'jump' or 'relu'"
    )


FORMAT = Format(
    "overcomplete",
    "overcomplete (Fel et al.; archetypal SAEs: arXiv 2502.12892)",
    "https://github.com/KempnerInstitute/overcomplete",
    read,
)
