"""What every reader makes of a file: SAELens's settings, weights and metadata, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vit_sae_plugin.inert_pickle import Inert

# what the other weights' shapes follow from: axis names of each weight SAELens has
_AXES = {
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "W_dec": ("d_sae", "d_in"),
    "b_dec": ("d_in",),
    "threshold": ("d_sae",),
    "b_gate": ("d_sae",),
    "b_mag": ("d_sae",),
    "r_mag": ("d_sae",),
}


@dataclass
class ReadSAE:
    """An SAE as a reader found it, in SAELens's terms."""

    architecture: str
    """SAELens's name of the architecture: the function that encodes and decodes."""
    weights: dict[str, Tensor]
    """By SAELens's names."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of the architecture's config beside widths, device and dtype."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What it reads: model, hook, tokens; None where the file doesn't say."""
    stated: dict[str, int | None] = field(default_factory=dict)
    """``d_in`` and ``d_sae`` as the file's settings state them, to compare with the weights."""
    training: dict[str, Any] = field(default_factory=dict)
    """The source's own settings, for the card."""

    def check(self) -> None:
        """Compare all shapes with each other and with what the settings say.

        Raises:
            ValueError: they differ, or weights aren't finite numbers.
        """
        encoder = self.weights["W_enc"]
        if encoder.ndim != 2:
            raise ValueError(f"the encoder is of shape {tuple(encoder.shape)}; want two axes")
        sizes = dict(zip(_AXES["W_enc"], encoder.shape, strict=True))
        for axis, size in self.stated.items():
            if size is not None and size != sizes[axis]:
                raise ValueError(
                    f"its settings say {axis}={size}, but its encoder has {axis}={sizes[axis]}"
                )
        for name, tensor in self.weights.items():
            wanted = tuple(sizes[axis] for axis in _AXES[name])
            if tuple(tensor.shape) != wanted:
                raise ValueError(f"{name} is of shape {tuple(tensor.shape)}; want {wanted}")
            if not tensor.is_floating_point():
                raise ValueError(f"{name} holds {tensor.dtype}; want floating-point numbers")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} holds NaN or infinite values")
        k = self.settings.get("k")
        if k is not None and not 1 <= k <= sizes["d_sae"]:
            raise ValueError(f"k is {k}; want 1 to {sizes['d_sae']}, the number of latents")

    def sae_lens_pair(
        self, device: str = "cpu", dtype: str = "float32"
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What SAELens's loaders return: a config of version 6, and weights."""
        from sae_lens import __version__

        number_format = getattr(torch, dtype)
        weights = {
            name: tensor.to(device=device, dtype=number_format).contiguous()
            for name, tensor in self.weights.items()
        }
        d_in, d_sae = weights["W_enc"].shape
        config = {
            "architecture": self.architecture,
            "d_in": d_in,
            "d_sae": d_sae,
            "dtype": dtype,
            "device": str(device),
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            **self.settings,
            "metadata": {"sae_lens_version": __version__, **self.metadata},
        }
        return config, weights


class StateDict:
    """The tensors of a file by name; knows which were used, so that none is overlooked.

    Args:
        values: the file's tensors.
        ignored: names, or ends of names, that don't change what the SAE computes.
    """

    def __init__(self, values: Any, ignored: tuple[str, ...] = ()) -> None:
        if not isinstance(values, Mapping) or not values:
            raise ValueError(f"want named tensors, found {type(values).__name__}")
        self._tensors = {
            str(name): value for name, value in values.items() if isinstance(value, Tensor)
        }
        self._ignored = ignored
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, *names: str) -> Tensor:
        """The first of these tensors that is there.

        Raises:
            ValueError: none is.
        """
        found = self.find(*names)
        if found is None:
            raise ValueError(
                f"there is no tensor {' or '.join(names)} in it; it holds {_listed(self._tensors)}"
            )
        return found

    def find(self, *names: str) -> Tensor | None:
        """The first of these tensors that is there, if any."""
        for name in names:
            if name in self._tensors:
                self._used.add(name)
                return self._tensors[name]
        return None

    def number(self, *names: str) -> float | None:
        """The first of these, which holds one number."""
        found = self.find(*names)
        if found is None:
            return None
        if found.numel() != 1:
            raise ValueError(f"{names[0]} is of shape {tuple(found.shape)}; want one number")
        return found.item()

    def refuse_the_rest(self) -> None:
        """Raise ValueError if tensors are left that no one asked for: they would be overlooked."""
        rest = [
            name
            for name in self._tensors
            if name not in self._used and not name.endswith(self._ignored or ("\0",))
        ]
        if rest:
            raise ValueError(
                f"it also holds {_listed(rest)}, of which this reader doesn't know what they do"
            )


def whole_number(settings: Mapping[str, Any], *names: str) -> int | None:
    """The first of these settings that is there, which is a whole number.

    Raises:
        ValueError: it is something else.
    """
    for name in names:
        value = settings.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            raise ValueError(f"its setting {name} is {value!r}; want a whole number")
        return int(value)
    return None


def wanted_number(settings: Mapping[str, Any], option: int | None, *names: str) -> int:
    """The same, or what the user states instead.

    Raises:
        ValueError: neither is there.
    """
    found = option if option is not None else whole_number(settings, *names)
    if found is None:
        raise ValueError(f"nothing says {names[0]}; state it as {names[0]}=…")
    return int(found)


def at_least(threshold: float | Tensor) -> Tensor:
    """A threshold for "above" that does what this one does for "at or above".

    SAELens's JumpReLU keeps what is above its threshold; the next smaller number makes that
    "at or above" exactly.
    """
    value = torch.as_tensor(threshold, dtype=torch.float32)
    return torch.nextafter(value, torch.full_like(value, -torch.inf))


def for_each_latent(threshold: float | Tensor, like: Tensor) -> Tensor:
    """One threshold, repeated for every latent."""
    value = torch.as_tensor(threshold, dtype=torch.float32)
    return value.expand(like.shape[0]).clone() if value.ndim == 0 else value


def settings_of(config: Any) -> dict[str, Any]:
    """A configuration as a dict, whether it was pickled as one or as an object.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(config, Inert):
        config = config.fields
    if not isinstance(config, Mapping):
        raise ValueError(f"its settings are a {type(config).__name__}; want named values")
    return {str(name): value for name, value in config.items()}


def written_plainly(value: Any, depth: int = 0) -> Any:
    """Settings as JSON can hold them; tensors and long lists are left out."""
    if isinstance(value, Inert):
        value = value.fields
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else None
    if depth > 4:
        return None
    if isinstance(value, Mapping):
        if value.keys() == {"__type__", "value"}:  # how Prisma writes devices and dtypes
            return value["value"]
        return {str(name): written_plainly(item, depth + 1) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [written_plainly(item, depth + 1) for item in value] if len(value) <= 64 else None
    return str(type(value).__name__)


def _listed(names: Any) -> str:
    names = sorted(names)
    shown = ", ".join(names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "nothing"
