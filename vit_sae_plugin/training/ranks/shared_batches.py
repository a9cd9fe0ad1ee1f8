"""Which SAEs several processes can train on parts of the same batches, with one process's result.

A process's part of the batch gives the loss and gradient of the whole, weighted by its share of
the rows, where the loss is a mean over rows of what each row gives by itself.
"""

from __future__ import annotations

from sae_lens.saes.sae import TrainingSAEConfig

from vit_sae_plugin.training.batch_parts import MEANS_OVER_ROWS

ALSO_MEANS_OVER_ROWS = frozenset(["abstopk", "matching_pursuit"])
"""Architectures whose loss is such a mean too. (Which latents are dead is known of the whole.)"""

SELECTED_FROM_BATCH = frozenset(["batchtopk", "matryoshka_batchtopk"])
"""Architectures that keep the largest latents of a whole batch, which the processes find together
(``whole_batch_topk``); else their loss is such a mean too."""


def check_can_share_batches(cfg: TrainingSAEConfig) -> None:
    """Raise a ValueError unless processes that share batches train such an SAE as one would."""
    architecture = cfg.architecture()
    known = MEANS_OVER_ROWS | ALSO_MEANS_OVER_ROWS | SELECTED_FROM_BATCH
    if architecture not in known:
        raise ValueError(
            f"several processes can't train {architecture!r}: it isn't known that its loss is a "
            "mean over rows, which each can work out for its part of a batch; want one of "
            f"{', '.join(sorted(known))}, or one process"
        )
