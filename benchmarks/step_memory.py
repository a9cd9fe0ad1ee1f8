"""Memory of training steps of a wide SAE, beyond its parameters' four copies.

    python -m benchmarks.step_memory

The four copies are weights, gradients and Adam's two moments. What else a step needs at most is
given in buffers of ``[batch, d_sae]``, the size of the latents of a batch. Each case and round has
a process of its own, since memory that was used once may be kept for reuse; the peak is the
resident memory's, over several steps, beyond what the process had before it made the SAE.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass, replace

import torch

from benchmarks.peak_memory import four_copies, peak_bytes
from benchmarks.ratios import Ratio, ratio_of
from benchmarks.sae_steps import CASES as STEPS
from benchmarks.sae_steps import Case as Step
from benchmarks.sae_steps import Sizes, make_step

N_STEPS = 3
SIZES = Sizes(d_sae=49152)


@dataclass(frozen=True)
class Case:
    """A training step to be measured."""

    step: str
    """Of ``benchmarks.sae_steps``."""
    goal: float | None = None
    n_parts: int = 1

    @property
    def name(self) -> str:
        return self.step + (f", in {self.n_parts} parts" if self.n_parts > 1 else "")


CASES = [
    Case("patchsae, none dead", 3),
    Case("patchsae, a quarter dead", 3),
    Case("patchsae, 2 % positive", 3),
    Case("patchsae, none dead", n_parts=4),
    Case("patchsae, a quarter dead", n_parts=4),
    Case("topk, k 64", 3),
    Case("matryoshka_topk, a fifth positive", 3),
]


def bytes_of(case: Case, sizes: Sizes) -> int:
    """Peak of this process while it makes an SAE and trains it for a few steps."""
    step = replace(next(s for s in STEPS if s.name == case.step), n_parts=case.n_parts)
    _use_libraries(step)
    rows = sizes.rows()

    def work() -> None:
        do = make_step(step, sizes, rows)
        for _ in range(N_STEPS):
            do()

    return peak_bytes(work)


def _use_libraries(step: Step) -> None:
    """So that what torch and the C functions load for their first step isn't counted."""
    tiny = Sizes(batch=64, d_in=8, d_sae=256)
    make_step(step, tiny, tiny.rows())()


def buffers_of(case: Case, sizes: Sizes) -> float:
    """In a process of its own: ``[batch, d_sae]`` buffers beyond the four copies."""
    command = [sys.executable, "-m", "benchmarks.step_memory", "--case", case.name]
    for name in ("batch", "d_in", "d_sae"):
        command += [f"--{name.replace('_', '-')}", str(getattr(sizes, name))]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    beyond = int(done.stdout.split()[-1]) - four_copies(sizes.d_in, sizes.d_sae)
    return beyond / (4 * sizes.batch * sizes.d_sae)


def measure(rounds: int = 1, sizes: Sizes = SIZES) -> list[Ratio]:
    """Buffers of each case. Memory hardly differs from round to round: two are enough."""
    rounds = min(rounds, 2)
    return [
        ratio_of(
            f"{case.name}: buffers beyond four copies",
            [buffers_of(case, sizes) for _ in range(rounds)],
            [1.0] * rounds,
            "[batch, d_sae] buffers",
            None if case.goal is None else f"≤ {case.goal}",
            f"batch {sizes.batch:,}, {sizes.d_in} to {sizes.d_sae:,}, fp32",
        )
        for case in CASES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=SIZES.batch)
    parser.add_argument("--d-in", type=int, default=SIZES.d_in)
    parser.add_argument("--d-sae", type=int, default=SIZES.d_sae)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--case", choices=[case.name for case in CASES], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = Sizes(args.batch, args.d_in, args.d_sae)
    if args.case:
        print(bytes_of(next(case for case in CASES if case.name == args.case), sizes))
        return
    for line in measure(args.rounds, sizes):
        print(f"{line.name:>70} {line.ratio:6.2f}  {line.goal or ''}")


if __name__ == "__main__":
    main()
