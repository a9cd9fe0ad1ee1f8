"""How fast rows are shuffled: ShuffleBuffer against SAELens's mixing_buffer, in one run.

Both get the same blocks of activations, already computed (so what is timed is the shuffle alone),
hold 200,000 rows of 768 floats and serve batches of 4,096. They take turns, and each turn's ratio
counts, so that a slow spell of the machine strikes both. On a machine that is busy with other
things, --cpu-time counts the seconds this process computes, on one thread, in place of those that
pass.

    python -m benchmarks.shuffle_rate
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

from benchmarks.ratios import Ratio, ratio_of
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


@torch.no_grad()
def rates(rounds: int, clock: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Rows a second of ours and of theirs, round by round."""
    ours, theirs = shuffled(), mixing_buffer(N_ROWS, BATCH_SIZE, blocks())
    # a whole buffer of ours, and of theirs the several refills that serve as many rows
    n_batches = N_ROWS // BATCH_SIZE
    seconds_for(ours, n_batches, clock)
    seconds_for(theirs, n_batches, clock)
    n_rows = n_batches * BATCH_SIZE
    fast, slow = [], []
    for _ in range(rounds):
        slow.append(n_rows / seconds_for(theirs, n_batches, clock))
        fast.append(n_rows / seconds_for(ours, n_batches, clock))
    return fast, slow


def measure(rounds: int = 5) -> list[Ratio]:
    """ShuffleBuffer against mixing_buffer, for `make bench`."""
    fast, slow = rates(rounds, time.perf_counter)
    note = f"{statistics.median(fast):,.0f} rows/s of {D_IN} floats"
    return [ratio_of("rows shuffled", fast, slow, "SAELens's mixing_buffer", "≥ 1", note)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-turns", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    if args.cpu_time:
        torch.set_num_threads(1)  # idle threads spin, and would be counted
    fast, slow = rates(args.n_turns, clock)
    ratio = ratio_of("", fast, slow, "")
    print(f"{torch.get_num_threads()} threads, {args.n_turns} turns, medians:")
    print(
        f"ShuffleBuffer {statistics.median(fast):,.0f} rows/s, "
        f"mixing_buffer {statistics.median(slow):,.0f} rows/s"
    )
    print(f"ratio {ratio.ratio:.1f} ({ratio.low:.1f} to {ratio.high:.1f})")


if __name__ == "__main__":
    main()
