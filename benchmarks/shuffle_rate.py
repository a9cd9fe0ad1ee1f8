"""How fast rows are shuffled: ShuffleBuffer against SAELens's mixing_buffer, in one run.

Both get the same blocks of activations, already computed (so what is timed is the shuffle alone),
hold 200,000 rows of 768 floats and serve batches of 4,096. They take turns, and each turn's ratio
counts, so that a slow spell of the machine strikes both. On a machine that is busy with other
things, --cpu-time counts the seconds this process computes, on one thread, in place of those that
pass.

    python benchmarks/shuffle_rate.py
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from sae_lens.training.mixing_buffer import mixing_buffer
from torch import Tensor

from vit_sae_plugin.activations.shuffle_buffer import ShuffleBuffer

D_IN = 768
N_ROWS = 200_000
BATCH_SIZE = 4096
ROWS_IN_BLOCK = 32 * 197
"""Rows that 32 images of a ViT-B/16 give."""


def blocks() -> Iterator[Tensor]:
    """The same activations again and again: making them costs nothing."""
    return itertools.repeat(torch.randn(ROWS_IN_BLOCK, D_IN))


def shuffled() -> Iterator[Tensor]:
    """Batches from a ShuffleBuffer."""
    n_batches = N_ROWS // BATCH_SIZE
    buffer = ShuffleBuffer(n_batches, BATCH_SIZE, D_IN)
    source = blocks()

    def take(n_rows: int) -> tuple[Tensor, Tensor]:
        rows = next(source)[:n_rows]
        return rows, torch.empty(len(rows), 0, dtype=torch.long)  # no coordinates

    for number in itertools.count():
        buffer.fill(take, (0, number))
        for batch in range(n_batches):
            yield buffer.batch(batch)


def seconds_for(batches: Iterator[Tensor], n_batches: int, clock: Callable[[], float]) -> float:
    """How long so many batches take."""
    start = clock()
    for batch in itertools.islice(batches, n_batches):
        batch[0, 0].item()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-turns", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    if args.cpu_time:
        torch.set_num_threads(1)  # idle threads spin, and would be counted
    with torch.no_grad():
        ours, theirs = shuffled(), mixing_buffer(N_ROWS, BATCH_SIZE, blocks())
        # a whole buffer of ours, and of theirs the several refills that serve as many rows
        n_batches = N_ROWS // BATCH_SIZE
        seconds_for(ours, n_batches, clock)
        seconds_for(theirs, n_batches, clock)
        ratios, rates = [], []
        for _ in range(args.n_turns):
            slow, fast = seconds_for(theirs, n_batches, clock), seconds_for(ours, n_batches, clock)
            ratios.append(slow / fast)
            rates.append([n_batches * BATCH_SIZE / seconds for seconds in (fast, slow)])
    fast, slow = (statistics.median(column) for column in zip(*rates, strict=True))
    print(f"{torch.get_num_threads()} threads, {args.n_turns} turns, medians:")
    print(f"ShuffleBuffer {fast:,.0f} rows/s, mixing_buffer {slow:,.0f} rows/s")
    print(f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
