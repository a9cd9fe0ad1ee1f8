"""What a training step costs that two processes take together, each on half of the batch.

    python -m benchmarks.ranks_cost

Each process has half of the cores: with them, one process takes the same step on the whole batch.
So the ratio is 1 where sharing a batch is free. Part of what it costs is the exchange of gradients,
measured by itself; the rest is what each process does for itself whatever its share of the rows:
the optimizer's pass over all weights, and products of fewer rows.

On one machine with one processor there is nothing to win by it. Machines, or GPUs, each add their
own cores; then the ratio says what share of what they add is lost.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import statistics
from collections.abc import Callable

import torch
from sae_lens.config import SAETrainerConfig
from torch import Tensor

from benchmarks.ratios import Ratio, ratio_of, seconds_in_turns
from benchmarks.sae_steps import CASES, Case, Sizes
from vit_sae_plugin.activations.row_store import RowStore
from vit_sae_plugin.saes import new_training_sae
from vit_sae_plugin.training import Ranks, ViTSAETrainer
from vit_sae_plugin.training.ranks.data_parallel import DataParallelTrainer

N_RANKS = 2
NAMES = ("patchsae, none dead", "topk, k 64", "batchtopk, k 64", "matryoshka_topk, half positive")


class _SameRows(RowStore):
    """Gives a process's rows of the same batch again and again."""

    def __init__(self, rows: Tensor, n_rows: int) -> None:
        self.rows = rows
        self.global_batch_rows = n_rows

    def __next__(self) -> Tensor:
        return self.rows

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def measure(rounds: int = 7) -> list[Ratio]:
    """Steps of two processes beside those of one with as many threads."""
    sizes, n_threads = Sizes(), max(torch.get_num_threads(), N_RANKS)
    rank = _start_other()
    torch.set_num_threads(n_threads // N_RANKS)
    ranks = Ranks.from_environment()
    if ranks is None:
        raise RuntimeError("WORLD_SIZE was taken away")
    table = []
    for case in (case for case in CASES if case.name in NAMES):
        table += _measure_case(case, sizes, ranks, rounds, n_threads)
    ranks.close()
    if rank:
        os._exit(0)  # the other process has no more to do
    os.environ.pop("WORLD_SIZE")
    torch.set_num_threads(n_threads)
    return table


def _start_other() -> int:
    """Start the second process; which of the two this is."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    child = os.fork()
    rank = 0 if child else 1
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(N_RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return rank


def _measure_case(
    case: Case, sizes: Sizes, ranks: Ranks, rounds: int, n_threads: int
) -> list[Ratio]:
    torch.manual_seed(0)
    rows = sizes.rows()
    own = rows.tensor_split(N_RANKS)[ranks.rank].contiguous()
    trainer = _trainer(case, sizes, _SameRows(own, len(rows)), ranks)
    n_summed = sum(p.numel() for p in trainer.sae.parameters()) + sizes.d_sae
    sums = torch.zeros(n_summed)

    def together() -> None:
        trainer.step(own)
        ranks.wait_for_all()

    def exchange() -> None:
        ranks.sum_(sums)
        ranks.wait_for_all()

    whole = _trainer(case, sizes, _SameRows(rows, len(rows))) if ranks.is_first else None

    def alone(with_threads: int) -> None:
        if whole is not None:
            torch.set_num_threads(with_threads)
            whole.step(rows)
            torch.set_num_threads(n_threads // N_RANKS)
        ranks.wait_for_all()

    runs: dict[str, Callable[[], object]] = {
        "together": together,
        "alone": lambda: alone(n_threads),
        "half the cores": lambda: alone(n_threads // N_RANKS),
        "exchange": exchange,
    }
    seconds = seconds_in_turns(runs, rounds)
    against = f"one process, {n_threads} threads"
    cores = f"{N_RANKS} processes, {n_threads // N_RANKS} threads each"
    megabytes = 4 * n_summed / 1e6
    return [
        ratio_of(f"{case.name}: {cores}", seconds["together"], seconds["alone"], against),
        ratio_of(
            f"{case.name}: exchange of gradients",
            seconds["exchange"],
            seconds["alone"],
            against,
            note=f"{megabytes:.0f} MB",
            rates={"bytes_per_second": 1e6 * megabytes / min(seconds["exchange"])},
        ),
        _exponent(case.name, seconds["together"], seconds["half the cores"]),
    ]


def _exponent(name: str, by_all: list[float], by_one: list[float]) -> Ratio:
    """How time falls with processes that each bring cores; −1: twice as many take half of it."""
    found = [math.log(a / b, N_RANKS) for a, b in zip(by_all, by_one, strict=True)]
    note = "−1: nothing is lost; memory of a process stays the same"
    what = f"{name}: time ~ processes^"
    return Ratio(what, statistics.median(found), min(found), max(found), "an exponent", note=note)


def _trainer(
    case: Case, sizes: Sizes, store: RowStore, ranks: Ranks | None = None
) -> ViTSAETrainer:
    torch.manual_seed(0)
    sae = new_training_sae(case.config(sizes), sizes.device)
    # steps too small to change what is measured
    cfg = SAETrainerConfig(
        10**9 * sizes.batch, sizes.batch, lr=1e-9, lr_end=0.0, device=sizes.device
    )
    if ranks is None:
        return ViTSAETrainer(cfg, sae, store, clip_grad_norm=case.clip_grad_norm)
    return DataParallelTrainer(cfg, sae, store, ranks=ranks, clip_grad_norm=case.clip_grad_norm)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    for line in measure(args.rounds):
        print(f"{line.name:75} {line.ratio:5.2f}  ({line.low:.2f} to {line.high:.2f})  {line.note}")


if __name__ == "__main__":
    main()
