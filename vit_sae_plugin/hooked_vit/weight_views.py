"""The wrapped model's weights under TransformerLens's names and in its layout, as views.

A view shares memory with the model's parameter. It is made when asked for, from whatever module
is in its place then: for an adapted layer it is the adapter's ``base_layer``, without the adapter.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from vit_sae_plugin.hooked_vit.tower_description import BlockDescription


def inside_of_wrappers(module: Any) -> Any:
    """The layer inside of what adapters (``base_layer``) and TransformerLens's bridges
    (``original_component``) put around it."""
    while (
        inner := getattr(module, "base_layer", None) or getattr(module, "original_component", None)
    ) is not None:
        module = inner
    return module


class Placed:
    """A node of the hook tree that knows the module it stands for.

    The reference is kept out of the node's sub-modules, so that walking, counting and saving the
    tree does not walk the model again; copying and pickling follow it as any attribute.
    """

    __dict__: dict[str, Any]

    def place(self, root: nn.Module, path: str, block: BlockDescription | None = None) -> None:
        """Say which wrapped model and which path this node stands for."""
        self.__dict__["_place"] = (root, path)
        self.__dict__["_block"] = block

    def _weights_of(self, *paths: str | None) -> Any:
        """The first module among ``paths`` that is given, seen through its adapters."""
        root, own = self.__dict__["_place"]
        given = next((path for path in paths if path is not None), "")
        module = reduce(
            getattr, [part for part in (*own.split("."), *given.split(".")) if part], root
        )
        return inside_of_wrappers(module)


class NormWeights(Placed):
    """The learned factor and shift of a norm."""

    @property
    def w(self) -> Tensor:
        """``[d_model]``."""
        return self._weights_of().weight

    @property
    def b(self) -> Tensor | None:
        """``[d_model]``; None for a norm without shift."""
        return getattr(self._weights_of(), "bias", None)


class AttentionWeights(Placed):
    """``W_Q, W_K, W_V [head, d_model, d_head]``, ``b_* [head, d_head]``, ``W_O``, ``b_O``."""

    n_heads: int

    def _projection(self, letter: str) -> tuple[Tensor, Tensor | None]:
        attention = self.__dict__["_block"].attention
        index = "qkv".index(letter)
        if attention.packed is not None:
            module = self._weights_of(attention.packed)
            weight, bias = module.in_proj_weight, module.in_proj_bias
        else:
            module = self._weights_of(attention.qkv, getattr(attention, letter))
            weight, bias = module.weight, module.bias
        if attention.packed is not None or attention.qkv is not None:
            weight = weight.chunk(3)[index]
            bias = None if bias is None else bias.chunk(3)[index]
        if attention.added_biases is not None:
            query_bias, value_bias = attention.added_biases
            path = {"q": query_bias, "v": value_bias}.get(letter)
            bias = None if path is None else self._weights_of(path)
        return weight, bias

    def _weight(self, letter: str) -> Tensor:
        weight = self._projection(letter)[0]
        return weight.view(self.n_heads, -1, weight.shape[-1]).transpose(1, 2)

    def _bias(self, letter: str) -> Tensor:
        weight, bias = self._projection(letter)
        if bias is None:
            bias = weight.new_zeros(len(weight))
        return bias.view(self.n_heads, -1)

    @property
    def W_Q(self) -> Tensor:
        """``[head, d_model, d_head]``."""
        return self._weight("q")

    @property
    def W_K(self) -> Tensor:
        """``[head, d_model, d_head]``."""
        return self._weight("k")

    @property
    def W_V(self) -> Tensor:
        """``[head, d_model, d_head]``."""
        return self._weight("v")

    @property
    def b_Q(self) -> Tensor:
        """``[head, d_head]``; zeros where the model has no bias."""
        return self._bias("q")

    @property
    def b_K(self) -> Tensor:
        """``[head, d_head]``; zeros where the model has no bias."""
        return self._bias("k")

    @property
    def b_V(self) -> Tensor:
        """``[head, d_head]``; zeros where the model has no bias."""
        return self._bias("v")

    @property
    def W_O(self) -> Tensor:
        """``[head, d_head, d_model]``."""
        weight = self._weights_of(self.__dict__["_block"].attention.out_proj).weight
        return weight.view(weight.shape[0], self.n_heads, -1).permute(1, 2, 0)

    @property
    def b_O(self) -> Tensor:
        """``[d_model]``; zeros where the model has no bias."""
        module = self._weights_of(self.__dict__["_block"].attention.out_proj)
        return _bias_or_zeros(module)


class MLPWeights(Placed):
    """``W_in [d_model, d_mlp]``, ``b_in``, ``W_out [d_mlp, d_model]``, ``b_out``."""

    @property
    def W_in(self) -> Tensor:
        """``[d_model, d_mlp]``."""
        return self._weights_of(self.__dict__["_block"].mlp_in).weight.T

    @property
    def b_in(self) -> Tensor:
        """``[d_mlp]``; zeros where the model has no bias."""
        return _bias_or_zeros(self._weights_of(self.__dict__["_block"].mlp_in))

    @property
    def W_out(self) -> Tensor:
        """``[d_mlp, d_model]``."""
        return self._weights_of(self.__dict__["_block"].mlp_proj).weight.T

    @property
    def b_out(self) -> Tensor:
        """``[d_model]``; zeros where the model has no bias."""
        return _bias_or_zeros(self._weights_of(self.__dict__["_block"].mlp_proj))


def _bias_or_zeros(module: Any) -> Tensor:
    bias = module.bias
    return bias if bias is not None else module.weight.new_zeros(len(module.weight))


class StackedWeights:
    """The same weights for all blocks, stacked along a first axis ``layer`` (a copy)."""

    blocks: nn.ModuleList

    def _stack(self, part: str, name: str) -> Tensor:
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])

    @property
    def W_Q(self) -> Tensor:
        """``[layer, head, d_model, d_head]``."""
        return self._stack("attn", "W_Q")

    @property
    def W_K(self) -> Tensor:
        """``[layer, head, d_model, d_head]``."""
        return self._stack("attn", "W_K")

    @property
    def W_V(self) -> Tensor:
        """``[layer, head, d_model, d_head]``."""
        return self._stack("attn", "W_V")

    @property
    def W_O(self) -> Tensor:
        """``[layer, head, d_head, d_model]``."""
        return self._stack("attn", "W_O")

    @property
    def b_Q(self) -> Tensor:
        """``[layer, head, d_head]``."""
        return self._stack("attn", "b_Q")

    @property
    def b_K(self) -> Tensor:
        """``[layer, head, d_head]``."""
        return self._stack("attn", "b_K")

    @property
    def b_V(self) -> Tensor:
        """``[layer, head, d_head]``."""
        return self._stack("attn", "b_V")

    @property
    def b_O(self) -> Tensor:
        """``[layer, d_model]``."""
        return self._stack("attn", "b_O")

    @property
    def W_in(self) -> Tensor:
        """``[layer, d_model, d_mlp]``."""
        return self._stack("mlp", "W_in")

    @property
    def b_in(self) -> Tensor:
        """``[layer, d_mlp]``."""
        return self._stack("mlp", "b_in")

    @property
    def W_out(self) -> Tensor:
        """``[layer, d_mlp, d_model]``."""
        return self._stack("mlp", "W_out")

    @property
    def b_out(self) -> Tensor:
        """``[layer, d_model]``."""
        return self._stack("mlp", "b_out")
