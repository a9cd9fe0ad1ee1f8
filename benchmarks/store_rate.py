"""How much of the bare tower's rate the activations store keeps, for shapes-clip and ViT-B-32.

The bare tower is the wrapped open_clip model's own modules, called one after the other, up to the
block that is hooked: exactly the layers that the store needs, on pixels in memory, in batches of
the same size. Against it:

- store, pixels ready: the store on images whose pixels are in memory too (its preprocessing hands
  them over), so that what it adds is measured: loading, hooks, buffer, shuffle, batches;
- loader and bare tower: images from arrays in memory, through ImageLoader and the model's own
  preprocessing, into the bare tower;
- store: the same images and preprocessing, through the store;
- full tower: the model's whole encode_image, for comparison.

All take turns, so that a slow spell of the machine strikes each. On a machine that is busy with
other things, --cpu-time counts the seconds this process computes, on one thread, in place of those
that pass.

    python -m benchmarks.store_rate
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import islice

import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from benchmarks.ratios import Ratio, ratio_of
from vit_sae_plugin.activations import ViTActivationsStore
from vit_sae_plugin.datasets import ArrayImages, ImageLoader
from vit_sae_plugin.hooked_vit import HookedViT


def load(name: str) -> HookedViT:
    """shapes-clip as it ships; any other open_clip architecture with random weights."""
    if name == "shapes-clip":
        return HookedViT.from_pretrained(name)
    bare, _, preprocess = open_clip.create_model_and_transforms(name)
    return HookedViT.from_module(bare.eval(), preprocess=preprocess, model_name=name)


def bare_tower(visual: nn.Module, pixels: Tensor, n_blocks: int) -> Tensor:
    """The first blocks of open_clip's VisionTransformer, by its own modules."""
    tokens = visual.ln_pre(visual.patch_dropout(visual._embeds(pixels)))
    for block in visual.transformer.resblocks[:n_blocks]:
        tokens = block(tokens)
    return tokens


class PixelsReady:
    """Stands for the preprocessing where the pixels are there already."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __call__(self, image) -> Tensor:
        return self.pixels


def images_per_second(run: Callable[[], None], n_images: int, clock: Callable[[], float]) -> float:
    """The rate of one turn."""
    start = clock()
    run()
    return n_images / (clock() - start)


@torch.no_grad()
def rates_of(
    name: str,
    n_batches: int,
    batch_size_images: int,
    n_turns: int,
    n_workers: int,
    clock: Callable[[], float],
) -> tuple[dict[str, list[float]], str]:
    """Rates of each, in images a second, a list of turns each."""
    model = load(name)
    cfg = model.cfg
    layer = cfg.n_layers - 2
    size = cfg.image_size
    pixels = torch.randn(batch_size_images, 3, *size)
    pictures = np.random.default_rng(0).integers(0, 256, (batch_size_images, *size, 3), np.uint8)
    n_images = n_batches * batch_size_images

    def store(preprocess: Callable) -> ViTActivationsStore:
        ready = HookedViT.from_module(model.bare_model, preprocess=preprocess)
        return ViTActivationsStore(
            ready,
            ArrayImages(pictures),
            hook_name=f"blocks.{layer}.hook_resid_post",
            train_batch_size_tokens=batch_size_images * cfg.n_tokens,
            store_batch_size_images=batch_size_images,
            n_batches_in_buffer=n_batches,
            n_workers=n_workers,
        )

    visual = model.bare_model.visual
    loaded = iter(
        ImageLoader(
            ArrayImages(pictures),
            model.preprocess,
            batch_size_images=batch_size_images,
            n_workers=n_workers,
            n_epochs=None,
        )
    )
    bare_from_loader = (bare_tower(visual, images.pixels, layer + 1) for images in loaded)
    batches = {
        "store, pixels ready": store(PixelsReady(pixels[0])),
        "loader and bare tower": bare_from_loader,
        "store": store(model.preprocess),
    }
    runs: dict[str, Callable[[], None]] = {
        "bare tower": lambda: [bare_tower(visual, pixels, layer + 1) for _ in range(n_batches)],
        **{
            kind: lambda one=one: [None for _ in islice(one, n_batches)]
            for kind, one in batches.items()
        },
        "full tower": lambda: [model.bare_model.encode_image(pixels) for _ in range(n_batches)],
    }
    for run in runs.values():
        run()
    rates: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(n_turns):
        for kind, run in runs.items():
            rates[kind].append(images_per_second(run, n_images, clock))
    return rates, f"{name}: blocks 0 to {layer} of {cfg.n_layers}, {cfg.n_tokens} tokens"


def measure(rounds: int = 7) -> list[Ratio]:
    """The store against its tower and against loader and tower, for `make bench`."""
    table = []
    for name in ("shapes-clip", "ViT-B-32"):
        rates, what = rates_of(name, 2, 32, rounds, 0, time.perf_counter)
        for kind, peer, goal in (
            ("store, pixels ready", "bare tower", "≥ 0.9"),
            ("store", "loader and bare tower", None),
        ):
            note = f"{what}; {statistics.median(rates[kind]):,.0f} images/s"
            table.append(ratio_of(f"{name}: {kind}", rates[kind], rates[peer], peer, goal, note))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["shapes-clip", "ViT-B-32"])
    parser.add_argument("--n-batches", type=int, default=6, help="batches a turn")
    parser.add_argument("--batch-size-images", type=int, default=32)
    parser.add_argument("--n-turns", type=int, default=9)
    parser.add_argument("--n-workers", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    if args.cpu_time:
        torch.set_num_threads(1)  # idle threads spin, and would be counted
    print(f"{torch.get_num_threads()} threads, batches of {args.batch_size_images} images")
    for name in args.models:
        rates, what = rates_of(
            name, args.n_batches, args.batch_size_images, args.n_turns, args.n_workers, clock
        )
        print(what)
        for kind, turns in rates.items():
            peer = "loader and bare tower" if kind == "store" else "bare tower"
            ratios = [one / bare for one, bare in zip(turns, rates[peer], strict=True)]
            print(
                f"  {kind:21} {statistics.median(turns):8.1f} images/s, "
                f"÷ {peer} {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
