"""How much analyze() costs on top of the bare model and SAE, and how much memory it takes.

Each measurement is a ratio of two loops over the same batches, taken in turns in one run:

- bare: the wrapped model's own modules up to the SAE's layer, and the three lines of an SAE's
  encoder;
- ours: the same images through HookedViT, the SAE and every statistic of an atlas.

Reference images and co-activation samples change often in the first images and ever more rarely
later, so the statistics take in ``--seen`` images before the clock starts: pictures of the run,
each scaled by a random factor.

The SAEs have random weights; their encoder biases are set so that a token has as many active
latents as a trained SAE's (``--l0``), with frequencies spread over three orders of magnitude.

    python -m benchmarks.atlas_rate                 # rate, three sizes
    python -m benchmarks.atlas_rate --cpu-time      # on a busy machine: one thread's CPU time
    python -m benchmarks.atlas_rate --scaled        # memory at 49,152 latents x 1,000 classes
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import time
from collections.abc import Callable

import torch
from sae_lens import StandardSAE, StandardSAEConfig
from torch import Tensor

from benchmarks.ratios import Ratio
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.aggregation import make_aggregation
from vit_sae_plugin.analysis.counting.atlas_builder import AtlasBuilder
from vit_sae_plugin.analysis.latent_feeds import take_in
from vit_sae_plugin.analysis.ranking_rules import DEFAULT_AGGREGATIONS
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import ImageBatch
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

# name, from_pretrained arguments, layer, d_sae, L0, images a batch, batches
CASES = [
    ("shapes-clip", {}, None, 1024, 23, 32, 60),
    ("ViT-B-32", {"pretrained": False}, 10, 6144, 64, 8, 40),
    ("ViT-B-32", {"pretrained": False}, 10, 49152, 150, 4, 40),
]


def bare_tower(model: HookedViT, n_blocks: int) -> Callable[[Tensor], Tensor]:
    """open_clip's own modules, without any block behind the SAE's."""
    visual = copy.deepcopy(model.bare_model.visual)
    visual.transformer.resblocks = visual.transformer.resblocks[:n_blocks]
    return lambda pixels: visual.transformer(visual._embeds(pixels))


def sparse_sae(acts_btd: Tensor, d_sae: int, l0: int) -> StandardSAE:
    """Random directions, with biases that let each latent fire at a frequency of its own."""
    d_in = acts_btd.shape[-1]
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, device=str(acts_btd.device)))
    generator = torch.Generator().manual_seed(0)
    rows = acts_btd.reshape(-1, d_in)
    sae.b_dec.data = rows.mean(dim=0)
    sae.W_enc.data = torch.randn(d_in, d_sae, generator=generator).to(rows) / d_in**0.5
    frequency = 10 ** (3 * torch.rand(d_sae, generator=generator) - 3)
    frequency = (frequency * l0 / frequency.sum()).clamp(max=0.9).to(rows)
    for start in range(0, d_sae, 4096):
        some = slice(start, start + 4096)
        pre = ((rows - sae.b_dec) @ sae.W_enc[:, some]).sort(dim=0).values
        row = ((1 - frequency[some]) * (len(rows) - 1)).long()
        sae.b_enc.data[some] = -pre.gather(0, row[None])[0]
    return sae


def rates_of(case: tuple, device: str, clock: Callable[[], float], n_seen: int) -> dict[str, float]:
    name, kwargs, layer, d_sae, l0, batch_size, n_batches = case
    model = HookedViT.from_pretrained(name, device=device, **kwargs)
    layer = model.cfg.n_layers - 2 if layer is None else layer
    hook_name = f"blocks.{layer}.hook_resid_post"
    source = ActivationSource.from_model(model, hook_name)
    side = model.cfg.image_size
    side = side if isinstance(side, int) else side[0]
    generator = torch.Generator().manual_seed(1)
    batches = [
        ImageBatch(
            # smooth pictures: tokens of white noise would all be alike
            pixels=torch.nn.functional.interpolate(
                torch.randn(batch_size, 3, 8, 8, generator=generator), size=(side, side)
            ).to(device),
            index=torch.arange(i * batch_size, (i + 1) * batch_size),
            label=torch.randint(0, 1000, (batch_size,), generator=generator),
            ids=[str(i)] * batch_size,
            batch_number=i,
        )
        for i in range(n_batches)
    ]
    tower = bare_tower(model, layer + 1)
    with torch.no_grad():
        acts = torch.cat([tower(batch.pixels) for batch in batches[: max(1, 64 // batch_size)]])
        sae = sparse_sae(acts, d_sae, l0)
        for key, value in source.to_metadata().items():
            sae.cfg.metadata[key] = value
        reached = (sae.encode(acts[:4]) > 0).float().sum(dim=-1).mean().item()
    attached = AttachedSAE(model, sae, source)
    builder = AtlasBuilder(
        d_sae,
        attached.layout,
        {rule: make_aggregation(rule) for rule in DEFAULT_AGGREGATIONS},
        threshold=0.2,
        n_reference_images=10,
        n_classes=1000,
    ).to(device)

    with torch.no_grad():
        for first in range(0, n_seen, batch_size):
            factor = torch.rand(batch_size, 1, 1, generator=generator).to(device) + 0.5
            index = torch.arange(first, first + batch_size) + batch_size * n_batches
            some = torch.arange(first, first + batch_size) % len(acts)
            builder.update(sae.encode(acts[some]) * factor, index, index % 1000, [""] * batch_size)

    @torch.no_grad()
    def bare(batch: ImageBatch) -> None:
        acts_btd = tower(batch.pixels)
        torch.relu((acts_btd - sae.b_dec) @ sae.W_enc + sae.b_enc)

    @torch.no_grad()
    def ours(batch: ImageBatch) -> None:
        take_in(builder, attached, batch)

    def seconds(run: Callable[[ImageBatch], None], batch: ImageBatch) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        run(batch)
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    bare(batches[0])
    times: list[tuple[float, float]] = []
    for number, batch in enumerate(batches):
        # in turns, so that whatever else the machine does meets both alike
        pair = [bare, ours] if number % 2 else [ours, bare]
        taken = {run: seconds(run, batch) for run in pair}
        times.append((taken[bare], taken[ours]))
    warm = times[2:]
    return {
        "L0": reached,
        "bare images/s": batch_size / statistics.median(b for b, _ in warm),
        "ours images/s": batch_size / statistics.median(o for _, o in warm),
        **quartiles([b / o for b, o in warm]),
    }


def quartiles(ratios: list[float]) -> dict[str, float]:
    """The median, and between what half of the batches lie: one batch is a short time to clock."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"ratio": middle, "low": low, "high": high}


def measure(rounds: int = 7) -> list[Ratio]:
    """The atlas pass against bare tower and encoder, for `make bench`; half of the batches lie
    between low and high, and there are a fixed number of batches, whatever ``rounds``."""
    table = []
    for case in CASES:
        found = rates_of(case, "cpu", time.perf_counter, 512)
        table.append(
            Ratio(
                f"analyze, {case[0]} with {case[3]:,} latents",
                found["ratio"],
                found["low"],
                found["high"],
                "bare tower and bare encoder",
                note=f"{found['ours images/s']:,.1f} images/s",
            )
        )
    return table


def measure_memory(n_images: int, device: str) -> None:
    """ImageNet's latents and classes with as many images as one has the patience for."""
    d_sae, n_tokens, n_classes, batch_size = 49152, 197, 1000, 4
    layout = TokenLayout.of_grid((14, 14), front=("class",))
    builder = AtlasBuilder(
        d_sae,
        layout,
        {rule: make_aggregation(rule) for rule in DEFAULT_AGGREGATIONS},
        threshold=0.2,
        n_reference_images=10,
        n_classes=n_classes,
    ).to(device)
    state = sum(b.numel() * b.element_size() for b in builder.buffers()) / 2**20
    print(f"state of the statistics: {state:,.0f} MiB; before them {peak_mib():,.0f} MiB")
    generator = torch.Generator(device=device).manual_seed(0)
    popularity = 10 ** (3 * torch.rand(d_sae, generator=generator, device=device) - 3)
    start, spent = time.perf_counter(), 0.0
    for first in range(0, n_images, batch_size):
        latents = torch.zeros(batch_size, n_tokens, d_sae, device=device)
        for image in range(batch_size):
            # an image has some 1,500 latents, a token 150 of them
            own = torch.multinomial(popularity, 1500, generator=generator)
            place = torch.rand(n_tokens, 1500, generator=generator, device=device) < 0.1
            value = torch.rand(n_tokens, 1500, generator=generator, device=device)
            latents[image][:, own] = place * value
        index = torch.arange(first, first + batch_size)
        began = time.perf_counter()
        builder.update(latents, index, index % n_classes, [f"image {int(i)}" for i in index])
        spent += time.perf_counter() - began
        done = first + batch_size
        if done & (done - 1) == 0 or done >= n_images:
            print(
                f"{done:>6,} images: peak {peak_mib():,.0f} MiB, "
                f"statistics {spent / done * 1e3:.0f} ms an image "
                f"(whole loop {(time.perf_counter() - start) / done * 1e3:.0f} ms)"
            )


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scaled", action="store_true", help="measure memory instead of rate")
    parser.add_argument("--n-images", type=int, default=1024, help="images of the scaled run")
    parser.add_argument("--seen", type=int, default=2048, help="images before the clock starts")
    parser.add_argument("--case", type=int, help="only this case of the rate")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time, of one thread")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    if args.cpu_time:
        torch.set_num_threads(1)
    if args.scaled:
        measure_memory(args.n_images, args.device)
        return
    for number, case in enumerate(CASES):
        if args.case in (None, number):
            figures = rates_of(case, args.device, clock, args.seen)
            text = ", ".join(f"{key} {value:,.3g}" for key, value in figures.items())
            print(f"{case[0]}, {case[3]:,} latents: {text}", flush=True)


if __name__ == "__main__":
    main()
