"""What the Matryoshka step's gathering takes at least, where it gathers from a cache.

    python -m benchmarks.gather_rate

Nested decoding adds up decoder rows for each of a row's levels, and its gradients look up one of a
row's level gradients for each latent in use. Kernels that hold what they look up in a table of one
strip of columns load each vector of it once for each pair of a row and an active latent, in
decoding and again for the gradients. Here such loads are timed with the arithmetic that goes with
them, one multiplication a vector in decoding, two and the sum of its lanes for the gradients, and
with nothing else: no lists are made or read from memory, no table is filled, nothing is written
but what is added up. Times are in products of ``[batch, d_in] × [d_in, d_sae]``, timed in turn with
them, by the processor's clock, which other load on the machine disturbs least.

It says what *gathering* can reach on a machine. Kernels that use each loaded vector for several
rows or latents would not be bound by it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.ratios import ratio_of, seconds_in_turns
from benchmarks.sae_steps import Sizes
from vit_sae_plugin.cpu_kernels import load_kernels, run_kernel

TABLE_KIB = (12, 192, 512, 768)
DENSITIES = (0.5, 0.2)
N_GATHERED = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    kernels = load_kernels(__file__)
    if kernels is None:
        raise SystemExit("this benchmark needs a C compiler")
    sizes, row_bytes = Sizes(), run_kernel(kernels.row_bytes)
    rows, W = sizes.rows(), torch.randn(sizes.d_in, sizes.d_sae)
    n_lookups = sizes.batch * sizes.d_sae * (4 * sizes.d_in // row_bytes)
    times = n_lookups // (args.threads * N_GATHERED)  # as if all latents were active
    steps: dict[str, Callable[[], object]] = {"": lambda: torch.mm(rows, W)}
    for kib in TABLE_KIB:
        n_rows = kib * 1024 // row_bytes
        tables = torch.randn(args.threads * n_rows * row_bytes // 4)
        row = torch.randint(n_rows, (N_GATHERED,), dtype=torch.int16)
        act, sums = torch.rand(N_GATHERED), torch.empty(args.threads * row_bytes // 4)
        dot, sizes_of = torch.empty(args.threads * N_GATHERED), (N_GATHERED, times, n_rows)
        decode = partial(run_kernel, kernels.gather, tables, row, act, sums, *sizes_of)
        gradients = partial(
            run_kernel, kernels.gather_gradients, tables, row, act, dot, sums, *sizes_of
        )
        steps |= {f"decoding, {kib} KiB": decode, f"gradients, {kib} KiB": gradients}
    seconds = seconds_in_turns(steps, args.rounds, time.process_time, warm_up=2)
    bare = seconds.pop("")
    print(f"products, for {args.threads} threads; half / a fifth of all pairs")
    for name, measured in seconds.items():
        by_density = [
            ratio_of(name, [d * s for s in measured], bare, "one product") for d in DENSITIES
        ]
        shown = " / ".join(f"{r.ratio:.2f} ({r.low:.2f} to {r.high:.2f})" for r in by_density)
        print(f"{name:>19} a thread: {shown}")


if __name__ == "__main__":
    main()
