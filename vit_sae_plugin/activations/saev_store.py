"""Training rows from saev's shards, newly shuffled in each epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.activations.row_store import Gather, RowStore
from vit_sae_plugin.activations.saev_shards import SaevShards
from vit_sae_plugin.activations.shuffle_buffer import ShuffleBuffer


class SaevStore(RowStore):
    """An endless SAELens data provider over one layer of ``SaevShards``.

    saev keeps images in order, so a buffer is filled with the rows of images drawn from all over
    the set and served once in random order, as ``ViTActivationsStore`` does. Each epoch visits
    every row once. The whole state is the number of batches served.

    Args:
        shards: where the rows are.
        hook_name: which of their layers, such as ``"blocks.10.hook_resid_post"``.
        token_kind: ``"all"``, ``"patches"`` or ``"cls"``.
        train_batch_size_tokens: rows of a batch.
        n_batches_in_buffer: batches that are shuffled together.
        seed: of both shuffles.
        dtype, device: of the batches.

    Raises:
        ValueError: a layer or tokens that the shards don't have, or a size below 1.
    """

    def __init__(
        self,
        shards: SaevShards,
        *,
        hook_name: str,
        token_kind: str = "all",
        train_batch_size_tokens: int = 4096,
        n_batches_in_buffer: int = 20,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        for name, size in (
            ("train_batch_size_tokens", train_batch_size_tokens),
            ("n_batches_in_buffer", n_batches_in_buffer),
        ):
            if size < 1:
                raise ValueError(f"{name} is {size}; want 1 or more")
        self.shards = shards
        self.hook_name = hook_name
        self.token_kind = token_kind
        self.d_in = shards.d_model
        self.seed = seed
        self.n_batches_in_buffer = n_batches_in_buffer
        self.n_batches_served = 0
        self._layer = shards.layer_of(hook_name)
        self._tokens = shards.tokens(token_kind)
        self._buffer = ShuffleBuffer(
            n_batches_in_buffer, train_batch_size_tokens, self.d_in, dtype, device
        )
        self._share = (0, 1)
        self._filled: int | None = None
        self._next_row = 0
        self._order: tuple[int, Int[np.ndarray, " n_examples"]] | None = None

    def __repr__(self) -> str:
        return f"<SaevStore of {self.shards!r}: {self.token_kind} tokens at {self.hook_name}>"

    def __next__(self) -> Float[Tensor, "train_batch_size_tokens d_in"]:
        """The next batch, in memory of its own."""
        number, batch = divmod(self.n_batches_served, self.n_batches_in_buffer)
        if self._filled != number:
            self._filled = None  # until it is filled to the end
            self._next_row = number * self.n_batches_in_buffer * self._buffer.batch_size
            self._buffer.fill(self._take_rows, (self.seed, number))
            self._filled = number
        self.n_batches_served += 1
        rows = self._buffer.batch(batch)
        self.global_batch_rows = len(rows)
        rank, n_ranks = self._share
        return rows if n_ranks == 1 else rows[rank::n_ranks].contiguous()

    def take_share(self, rank: int, n_ranks: int, gather: Gather) -> None:
        """Give every ``n_ranks``-th row only. Each process reads them all: on one machine, from one
        copy in memory."""
        if not 0 <= rank < n_ranks:
            raise ValueError(f"rank is {rank}; want 0 to {n_ranks - 1}")
        self._share = (rank, n_ranks)

    def _take_rows(self, n_rows: int) -> tuple[Tensor, Tensor]:
        """What is left of an example's rows, at most ``n_rows``."""
        n_tokens = self._tokens.stop - self._tokens.start
        visited, token = divmod(self._next_row, n_tokens)
        epoch, place = divmod(visited, self.shards.n_examples)
        example = self.shards.example(int(self._examples_of(epoch)[place]), self._layer)
        chosen = example[self._tokens][token : token + n_rows]
        self._next_row += len(chosen)
        rows = torch.from_numpy(np.array(chosen, dtype=np.float32))
        return rows, torch.empty(len(rows), 0, dtype=torch.long)

    def _examples_of(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._order = (epoch, generator.permutation(self.shards.n_examples))
        return self._order[1]

    def describe(self) -> dict[str, Any]:
        """Hook and tokens, and the model where its name here is known."""
        return {
            "hook_name": self.hook_name,
            "token_kind": self.token_kind,
            "seqpos_slice": [None],
            "saev_family": self.shards.family,
            "saev_ckpt": self.shards.ckpt,
            **named_model(self.shards),
        }

    def fingerprint(self) -> dict[str, Any]:
        """The metadata's hash, and which rows."""
        return {
            "saev_shards": self.shards.sha256,
            "hook_name": self.hook_name,
            "token_kind": self.token_kind,
        }

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to go on with the very next batch."""
        return {"n_batches_served": self.n_batches_served}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a store with the same settings stood."""
        self.n_batches_served = int(state["n_batches_served"])
        self._filled = None


def named_model(shards: SaevShards) -> dict[str, Any]:
    """What ``HookedViT.from_pretrained`` calls the shards' model; empty where that is unknown.

    saev's CLIPs and SigLIPs are open_clip's: ``"ViT-B-16/openai"`` or ``"hf-hub:…"``.
    """
    if shards.family not in ("clip", "siglip"):
        return {}
    if shards.ckpt.startswith("hf-hub:"):
        return {"model_name": shards.ckpt, "model_from_pretrained_kwargs": {}}
    name, _, pretrained = shards.ckpt.partition("/")
    if not name or not pretrained:
        return {}
    return {"model_name": name, "model_from_pretrained_kwargs": {"pretrained": pretrained}}
