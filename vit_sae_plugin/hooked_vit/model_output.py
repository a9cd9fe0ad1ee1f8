"""The tensor meant, out of the many shapes in which models return their output."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError


def field_of(output: Any, name: str | None) -> Any:
    """A named field of a model's output; None for the output itself."""
    return output if name is None else getattr(output, name)


def select_output(output: Any, fields: tuple[str, ...]) -> Tensor:
    """The image embedding, or the logits, in a model's output.

    Args:
        output: what the model returned.
        fields: names of fields: the first that is there and not None is taken; none of them means
            the output itself, or the first item of a tuple. ``name[cls]`` takes token 0 of a field
            ``[batch, token, d]``.

    Raises:
        UnsupportedTowerError: there is no such tensor.
    """
    for field in fields:
        name, _, token = field.partition("[")
        value = getattr(output, name, None)
        if value is not None:
            return value[:, 0] if token else value
    if not fields:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, Tensor):
            return value
    raise UnsupportedTowerError(
        f"the model returned a {type(output).__name__}; want "
        f"{' or '.join(fields) or 'a tensor'}, the pooled image embedding (stop_at_layer still "
        "gives the residual stream)"
    )
