"""Learnt prompt tokens, and the modules that put them into a transformer's sequence."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Prompt(nn.Module):
    """Learnt tokens.

    Args:
        rows: their first values.
        round_to_half: give them out rounded to 16 bits, as MaPLe's and CoOp's published code does
            wherever prompts enter a tower (in its 32-bit setting too).
    """

    def __init__(self, rows: Float[Tensor, "n d"], round_to_half: bool = False) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)
        self.round_to_half = round_to_half

    def forward(self) -> Float[Tensor, "n d"]:
        """The tokens as they enter the tower."""
        return _rounded(self.rows) if self.round_to_half else self.rows


class CoupledPrompt(nn.Module):
    """Tokens that a linear map makes of another tower's: MaPLe's coupling function.

    Args:
        source: the other tower's tokens.
        projection: from its width to this tower's.
    """

    def __init__(self, source: Prompt, projection: nn.Linear) -> None:
        super().__init__()
        self.source = source
        self.projection = projection

    def forward(self) -> Float[Tensor, "n d"]:
        """The tokens as they enter the tower."""
        rows = self.projection(self.source.rows)
        return _rounded(rows) if self.source.round_to_half else rows


class AppendedPrompt(nn.Module):
    """Puts prompt tokens at the end of the sequence, in front of a module.

    Args:
        inner: what comes next: CLIP's norm in front of the first block.
        prompt: the tokens.
    """

    def __init__(self, inner: nn.Module, prompt: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.prompt = prompt

    def forward(self, x: Float[Tensor, "batch token d"]) -> Float[Tensor, "batch more d"]:
        """The module's output for the longer sequence."""
        rows = self.prompt().to(x.dtype).expand(len(x), -1, -1)
        return self.inner(torch.cat([x, rows], dim=1))


class PromptedBlock(nn.Module):
    """A block behind which other prompt tokens take the place of those that went through it.

    Deep prompting replaces them where the next block reads the sequence. Here that happens as this
    block's last step, so that its output, and a hook on it, is what the next block reads.

    Args:
        block: the block.
        prompt: the tokens of the next block (None: the old ones flow on).
        first: the position of the first of them; a negative one counts from the end.
    """

    def __init__(self, block: nn.Module, prompt: nn.Module | None, first: int) -> None:
        super().__init__()
        self.block = block
        self.prompt = prompt
        self.first = first

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # libraries ask their blocks for other things than forward
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output, with the next block's prompt tokens in their places."""
        output = self.block(*args, **kwargs)
        if self.prompt is None:
            return output
        if isinstance(output, tuple):
            return (with_rows(output[0], self.prompt(), self.first), *output[1:])
        return with_rows(output, self.prompt(), self.first)


class PromptedEmbedding(nn.Module):
    """A table of token embeddings whose first text tokens are learnt ones instead.

    Args:
        inner: the table.
        prompt: the learnt tokens.
        first: the position of the first of them: behind the start token, if there is one.
    """

    def __init__(self, inner: nn.Module, prompt: Prompt, first: int) -> None:
        super().__init__()
        self.inner = inner
        self.prompt = prompt
        self.first = first

    @property
    def weight(self) -> Tensor:
        """The table, ``[vocabulary, d]``; libraries read its number format."""
        return self.inner.weight  # type: ignore[return-value]

    def forward(self, ids: Int[Tensor, "text token"]) -> Float[Tensor, "text token d"]:
        """Embeddings of texts whose tokens at these positions stand for the learnt ones."""
        return with_rows(self.inner(ids), self.prompt(), self.first)


def with_rows(
    stream: Float[Tensor, "batch token d"], rows: Float[Tensor, "n d"], first: int
) -> Float[Tensor, "batch token d"]:
    """The sequence with other tokens from position ``first`` on (negative: from the end)."""
    start = first if first >= 0 else stream.shape[1] + first
    rows = rows.to(stream.dtype).expand(len(stream), -1, -1)
    return torch.cat([stream[:, :start], rows, stream[:, start + rows.shape[1] :]], dim=1)


def _rounded(rows: Tensor) -> Tensor:
    return rows.to(torch.float16).to(rows.dtype)
