"""Time and memory of a Matryoshka TopK training step, beside what it has to be compared with.

    python -m benchmarks.matryoshka_step

*Products*: the five matrix products that a ReLU SAE's step can't do without (encode, decode, and
the gradients of latents, decoder and encoder). *Plain*: the same loss with a top-k and a full
decoding per level, by autograd. All are timed in turn, round after round, in one process, and the
ratios are those of their fastest rounds, which other load on the machine disturbs least. Peak
memory is what steps need beyond the weights and the input: gradients and all in between.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from torch import Tensor

from benchmarks.peak_memory import peak_bytes
from vit_sae_plugin.saes import MatryoshkaTopKTrainingSAE, MatryoshkaTopKTrainingSAEConfig

POSITIVE_SHARES = {"initialisation": 0.5, "trained": 0.2}


def make_sae(d_in: int, d_sae: int, device: str) -> MatryoshkaTopKTrainingSAE:
    torch.manual_seed(0)
    cfg = MatryoshkaTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, device=device)
    return MatryoshkaTopKTrainingSAE(cfg).train()


def set_positive_share(sae: MatryoshkaTopKTrainingSAE, rows: Tensor, share: float) -> None:
    """Shift the encoder's biases so that this share of the latents is positive."""
    with torch.no_grad():
        sae.b_enc.zero_()
        hidden_pre = sae.encode_with_hidden_pre(rows)[1]
        sae.b_enc.sub_(hidden_pre.flatten()[:1_000_000].quantile(1 - share))


def step_input(rows: Tensor, d_sae: int) -> TrainStepInput:
    dead = torch.zeros(d_sae, dtype=torch.bool, device=rows.device)
    return TrainStepInput(rows, {}, dead, n_training_steps=1, is_logging_step=False)


def training_step(sae: TrainingSAE[Any], rows: Tensor) -> None:
    sae.zero_grad()
    sae.training_forward_pass(step_input(rows, sae.cfg.d_sae)).loss.backward()


def plain_step(sae: MatryoshkaTopKTrainingSAE, rows: Tensor) -> None:
    """What one would write first, with the defaults of ``topk``."""
    sae.zero_grad()
    hidden_pre = (rows - sae.b_dec) @ sae.W_enc + sae.b_enc
    losses = []
    for k in sae.cfg.levels():
        values, latents = hidden_pre.topk(k, dim=-1)
        acts = torch.zeros_like(hidden_pre).scatter(-1, latents, values.relu())
        losses.append(((acts @ sae.W_dec + sae.b_dec) - rows).square().mean())
    torch.stack(losses).mean().backward()


def five_products(sae: MatryoshkaTopKTrainingSAE, rows: Tensor) -> None:
    with torch.no_grad():
        latents = rows @ sae.W_enc
        reconstruction = latents @ sae.W_dec
        reconstruction @ sae.W_dec.T
        latents.T @ reconstruction
        rows.T @ latents


def fastest_rounds(steps: dict[str, Callable[[], None]], n_rounds: int) -> dict[str, float]:
    """Seconds of each step's fastest round."""
    seconds = {name: float("inf") for name in steps}
    for _ in range(n_rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def report_ratios(args: argparse.Namespace) -> None:
    sae = make_sae(args.d_in, args.d_sae, args.device)
    rows = torch.randn(args.batch, args.d_in, device=args.device)
    print(f"levels {sae.cfg.levels()}, batch {args.batch}, d_in {args.d_in}, {args.device}")
    print(
        f"{'latents positive':>23} {'products':>9} {'ours':>9} {'plain':>9}   "
        f"ours/products   plain/ours"
    )
    for name, share in POSITIVE_SHARES.items():
        set_positive_share(sae, rows, share)
        seconds = fastest_rounds(
            {
                "products": lambda: five_products(sae, rows),
                "ours": lambda: training_step(sae, rows),
                "plain": lambda: plain_step(sae, rows),
            },
            args.rounds,
        )
        times = " ".join(f"{1e3 * s:6.0f} ms" for s in seconds.values())
        print(
            f"{name:>17} ({share:.0%}) {times}   "
            f"{seconds['ours'] / seconds['products']:13.2f}   "
            f"{seconds['plain'] / seconds['ours']:10.2f}",
            flush=True,
        )


def topk_sae(d_in: int, d_sae: int, device: str) -> TopKTrainingSAE:
    """SAELens's TopK SAE with its defaults."""
    return TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, device=device)).train()


def print_peak_memory(args: argparse.Namespace) -> None:
    """Bytes that three steps need at most beyond those in use before the first."""
    rows = torch.randn(args.batch, args.d_in, device=args.device)
    sae: TrainingSAE[Any]
    if args.peak_memory_of == "topk":
        sae = topk_sae(args.d_in, args.d_sae, args.device)
    else:
        sae = make_sae(args.d_in, args.d_sae, args.device)
        set_positive_share(sae, rows, POSITIVE_SHARES[args.peak_memory_of])
    print(peak_bytes(lambda: [training_step(sae, rows) for _ in range(3)]))


def report_memory(args: argparse.Namespace) -> None:
    """Each step in a process of its own."""
    buffer = 4 * args.batch * args.d_sae
    peaks = {}
    for name in ("topk", *POSITIVE_SHARES):
        command = [
            sys.executable,
            "-m",
            "benchmarks.matryoshka_step",
            "--peak-memory-of",
            name,
            "--device",
            args.device,
        ]
        command += ["--batch", str(args.batch), "--d-in", str(args.d_in)]
        command += ["--d-sae", str(args.d_sae), "--threads", str(args.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name] = int(done.stdout)
    print(f"peak memory of a step; a [batch, d_sae] buffer has {buffer / 1e6:.0f} MB")
    for name, peak in peaks.items():
        above = (peak - peaks["topk"]) / buffer
        print(f"{name:>15}: {peak / 1e6:5.0f} MB, SAELens's TopK and {above:+.2f} buffers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=6144)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak-memory-of", choices=["topk", *POSITIVE_SHARES])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_memory_of:
        print_peak_memory(args)
        return
    report_ratios(args)
    report_memory(args)


if __name__ == "__main__":
    main()
