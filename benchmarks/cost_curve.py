"""How time and memory grow with tokens, latents, layers and processes: fitted exponents.

    python -m benchmarks.cost_curve
    python -m benchmarks.cost_curve --figure cost_curve.png

An exponent is the slope of a straight line through the logarithms: 1 grows as its cause does, 0 not
at all. Between low and high lie the slopes between neighbouring points, so a curve that isn't
straight shows as a wide spread.

- *tokens*: a whole training step against the rows of a batch;
- *latents*: a whole training step against the SAE's width;
- *layers*: caching's forward pass against the blocks below the hook.

Steps are ``ViTSAETrainer``'s, everything included. A point's time is the median over rounds, in
turns with the other points; its peak memory is measured once, in a process that does nothing else:
of a step, beyond the four copies of the parameters (weights, gradients and Adam's two moments); of
a forward pass, beyond the model and the images.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig

from benchmarks.other_libraries import our_step
from benchmarks.peak_memory import four_copies, peak_bytes
from benchmarks.ratios import Ratio, seconds_in_turns
from benchmarks.store_rate import load
from vit_sae_plugin.activations.activation_source import ActivationSource, hook_values
from vit_sae_plugin.saes import MatryoshkaTopKTrainingSAEConfig, PatchTrainingSAEConfig

D_IN = 768
TOKENS = (256, 512, 1024, 2048, 4096)
LATENTS = (1536, 3072, 6144, 12288, 24576)
LAYERS = (1, 2, 4, 8, 12)
AXES = {"tokens": TOKENS, "latents": LATENTS}
SAES: dict[str, Callable[[int], Any]] = {
    "patchsae": lambda d_sae: PatchTrainingSAEConfig(d_in=D_IN, d_sae=d_sae),
    "topk": lambda d_sae: TopKTrainingSAEConfig(d_in=D_IN, d_sae=d_sae, k=64),
    "matryoshka_topk": lambda d_sae: MatryoshkaTopKTrainingSAEConfig(d_in=D_IN, d_sae=d_sae),
}


@dataclass(frozen=True)
class Curve:
    """Seconds and bytes at each size."""

    what: str
    against: str
    sizes: tuple[int, ...]
    seconds: list[float]
    peak_bytes: list[float]


def step_of(kind: str, n_tokens: int, d_sae: int) -> Callable[[], None]:
    """A training step on rows of its own."""
    rows = torch.randn(n_tokens, D_IN, generator=torch.Generator().manual_seed(0))
    return our_step(SAES[kind](d_sae), rows)


def batch_and_width(against: str, size: int) -> tuple[int, int]:
    """Tokens and latents at a point of a curve."""
    return (size, 6144) if against == "tokens" else (1024, size)


def forward_pass(n_layers: int, model: Any, n_images: int = 32) -> Callable[[], object]:
    """Images through ViT-B/32 up to the hook after so many blocks."""
    source = ActivationSource.from_model(model, f"blocks.{n_layers - 1}.hook_resid_post")
    pixels = torch.randn(n_images, 3, *model.cfg.image_size)
    return lambda: hook_values([source], model, pixels)


def peaks_of(what: str, threads: int) -> list[float]:
    """Peak memory of three pieces of work at each size."""
    command = [sys.executable, "-m", "benchmarks.cost_curve", "--peaks", what]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peaks(what: str, threads: int) -> list[int]:
    """The same, each size in a child of this process, which must not have computed anything."""
    context = multiprocessing.get_context("fork")  # so that the libraries are loaded once
    found = []
    for size in sizes_of(what):
        with context.Pool(1) as pool:
            found.append(pool.apply(_peak, (what, size, threads)))
    return found


def _peak(what: str, size: int, threads: int) -> int:
    torch.set_num_threads(threads)
    if what == "layers":
        model = load("ViT-B-32")
        forward_pass(1, model, n_images=1)()  # what torch loads for its first pass isn't counted
        work = forward_pass(size, model)
        return peak_bytes(lambda: [work() for _ in range(3)])
    kind, against = what.split()
    n_tokens, d_sae = batch_and_width(against, size)
    step_of(kind, 64, 256)()

    def steps() -> None:
        step = step_of(kind, n_tokens, d_sae)
        for _ in range(3):
            step()

    return peak_bytes(steps) - four_copies(D_IN, d_sae)


def sizes_of(what: str) -> tuple[int, ...]:
    """The points of a curve."""
    return LAYERS if what == "layers" else AXES[what.split()[1]]


def curves(rounds: int) -> list[Curve]:
    """Everything, one curve after the other; the points of a curve take turns."""
    found = []
    for what in [*(f"{kind} {against}" for kind in SAES for against in AXES), "layers"]:
        sizes = sizes_of(what)
        if what == "layers":
            model = load("ViT-B-32")
            runs = {str(size): forward_pass(size, model) for size in sizes}
        else:
            kind, against = what.split()
            runs = {str(n): step_of(kind, *batch_and_width(against, n)) for n in sizes}
        seconds = seconds_in_turns(runs, rounds)
        most = peaks_of(what, torch.get_num_threads())
        name, against = ("tower", "layers") if what == "layers" else what.split()
        medians = [statistics.median(seconds[str(size)]) for size in sizes]
        found.append(Curve(name, against, sizes, medians, most))
    return found


def exponent(sizes: tuple[int, ...], values: list[float]) -> tuple[float, float, float]:
    """Slope of the logarithms by least squares, and the smallest and largest between neighbours.

    What needed no memory beyond what was there before has no logarithm, and is left out.
    """
    points = [(math.log(size), math.log(v)) for size, v in zip(sizes, values, strict=True) if v > 0]
    if len(points) < 2:
        return math.nan, math.nan, math.nan
    x, y = [point[0] for point in points], [point[1] for point in points]
    slope = statistics.linear_regression(x, y).slope
    pairs = [(y[i + 1] - y[i]) / (x[i + 1] - x[i]) for i in range(len(x) - 1)]
    return slope, min(pairs), max(pairs)


def measure(rounds: int = 7) -> list[Ratio]:
    """Exponents for `make bench`."""
    table = []
    for curve in curves(min(rounds, 3)):
        for what, values in (("time", curve.seconds), ("peak memory", curve.peak_bytes)):
            slope, low, high = exponent(curve.sizes, values)
            shown = "ms" if what == "time" else "MB"
            scale = 1e3 if what == "time" else 1e-6
            points = ", ".join(
                f"{size:,}: {scale * value:,.0f} {shown}"
                for size, value in zip(curve.sizes, values, strict=True)
            )
            name = f"{curve.what}: {what} ~ {curve.against}^"
            rates = {str(size): v for size, v in zip(curve.sizes, values, strict=True)}
            table.append(Ratio(name, slope, low, high, "an exponent", note=points, rates=rates))
    return table


def draw(found: list[Curve], path: Path) -> None:
    """Time and memory against each cause, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes_names = ("tokens", "latents", "layers")
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6), sharex="col", layout="constrained")
    for row, (what, unit, scale) in enumerate((("time", "ms", 1e3), ("peak memory", "MB", 1e-6))):
        for column, against in enumerate(axes_names):
            axis = axes[row, column]
            for curve in (c for c in found if c.against == against):
                values = curve.seconds if what == "time" else curve.peak_bytes
                slope = exponent(curve.sizes, values)[0]
                label = f"{curve.what}  (exponent {slope:.2f})"
                axis.plot(curve.sizes, [scale * v for v in values], "o-", label=label)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(next(c.sizes for c in found if c.against == against))
            axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
            axis.grid(alpha=0.25)
            axis.legend(fontsize=7.5, frameon=False)
            if column == 0:
                axis.set_ylabel(f"{what} ({unit})")
            if row == 1:
                causes = {
                    "tokens": "tokens of a batch, 6,144 latents",
                    "latents": "latents, 1,024 tokens",
                    "layers": "blocks of ViT-B/32, 32 images",
                }
                axis.set_xlabel(causes[against])
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--figure", type=Path, help="draw the curves into this file")
    parser.add_argument("--peaks", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peaks:
        print(json.dumps(peaks(args.peaks, args.threads)))
        return
    torch.set_num_threads(args.threads)
    found = curves(args.rounds)
    for curve in found:
        for what, values in (("time", curve.seconds), ("peak memory", curve.peak_bytes)):
            slope, low, high = exponent(curve.sizes, values)
            print(
                f"{curve.what}: {what} ~ {curve.against}^{slope:.2f} ({low:.2f} to {high:.2f}) "
                f"{json.dumps(dict(zip(curve.sizes, values, strict=True)))}"
            )
    if args.figure:
        draw(found, args.figure)


if __name__ == "__main__":
    main()
