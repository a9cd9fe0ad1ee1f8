"""A training batch in parts, one after another, with the gradients of the whole.

The largest arrays of a step are ``[rows, d_sae]``. Where the loss is a mean over rows, its gradient
is the sum of the parts' gradients, each weighted by its share of the rows; then a step needs these
arrays for one part at a time, and the result is the same but for rounding.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from torch import Tensor

from vit_sae_plugin.saes.dense_step import gradients_added_in_place
from vit_sae_plugin.saes.firing_counts import LateStepOutput, firing_counts

MEANS_OVER_ROWS = frozenset(
    "standard standard_ghost standard_relative_l1 patchsae topk topk_ghost matryoshka_topk gated "
    "jumprelu transcoder skip_transcoder jumprelu_transcoder jumprelu_skip_transcoder".split()
)
"""Architectures whose loss is a mean over rows, of which none depends on the others. Not so
``batchtopk`` and ``matryoshka_batchtopk``, which select latents over the whole batch."""


def check_parts(n_parts: int, architecture: str, batch_size: int) -> None:
    """See that a batch can be split.

    Raises:
        ValueError: more parts than rows, fewer than one, or another architecture.
    """
    if not 1 <= n_parts <= batch_size:
        raise ValueError(
            f"train_batch_parts is {n_parts}; want 1 to {batch_size}, the rows of a batch"
        )
    if n_parts > 1 and architecture not in MEANS_OVER_ROWS:
        raise ValueError(
            f"train_batch_parts is {n_parts}, but a step of {architecture} in parts isn't known to "
            "be that of the whole batch; want 1, or a smaller train_batch_size_tokens"
        )


def step_in_parts(
    sae: TrainingSAE[Any],
    step_input: TrainStepInput,
    n_parts: int,
    autocast: AbstractContextManager[Any],
) -> TrainStepOutput:
    """Forward and backward pass of a batch.

    Args:
        sae: of an architecture in ``MEANS_OVER_ROWS``; its parameters' gradients are added to.
        step_input: the whole batch.
        n_parts: how many parts of about equal size.
        autocast: entered for each forward pass.

    Returns:
        Losses, metrics, ``sae_out`` and ``n_fired`` of the whole batch, but ``feature_acts`` and
        ``hidden_pre`` of the last part only. Nothing of it has a gradient.
    """
    rows = step_input.sae_in
    if step_input.n_training_steps == 0 and hasattr(sae, "start_from"):
        sae.start_from(rows)
    outputs, shares = [], []
    n_fired: Tensor | int = 0
    has_no_gradients = all(p.grad is None for p in sae.parameters())
    for part in rows.chunk(n_parts):
        output: Any = None  # so that the next has its memory
        with autocast, gradients_added_in_place() if has_no_gradients else nullcontext():
            output = sae.training_forward_pass(step_input=replace(step_input, sae_in=part))
        share = len(part) / len(rows)
        (output.loss * share).backward()
        n_fired = n_fired + firing_counts(output)
        outputs.append((output.sae_in, output.sae_out.detach(), _detached(output)))
        shares.append(share)
    sae_in, sae_out, named = zip(*outputs, strict=True)
    whole = {name: _combined(name, [n[name] for n in named], shares) for name in named[0]}
    return LateStepOutput(
        lambda: output.feature_acts.detach(),
        sae_in=torch.cat(sae_in),
        sae_out=torch.cat(sae_out),
        hidden_pre=output.hidden_pre.detach(),
        loss=whole.pop("loss"),
        losses={name: whole[name] for name in output.losses},
        metrics={name: whole[name] for name in output.metrics},
        n_fired=torch.as_tensor(n_fired),
    )


def _detached(output: TrainStepOutput) -> dict[str, Any]:
    named = {"loss": output.loss, **output.losses, **output.metrics}
    return {n: value.detach() if isinstance(value, Tensor) else value for n, value in named.items()}


def _combined(name: str, values: list[Any], shares: list[float]) -> Any:
    if any(callable(value) for value in values):
        return values[-1]  # of the SAE's state, for its logs
    if name.startswith(("max_", "min_")):  # as SAELens names what is no mean
        return getattr(torch.stack([torch.as_tensor(v) for v in values]), name[:3])()
    return sum(share * value for share, value in zip(shares, values, strict=True))
