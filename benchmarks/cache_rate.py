"""The activation cache against what it can't do without: the tower, the disk, the training step.

    python -m benchmarks.cache_rate

- Writing: ViT-B/32 (random weights: they cost the same), one hook behind its last block, and four
  hooks, against the tower's own modules on the same pixels in the same batches. The pixels are in
  memory, so that what the cache adds is measured: loading, hooks, order, checksums, files, fsync.
- Shuffled reading: an epoch of batches against one sequential read of the same files, with the
  files' pages dropped from the page cache before each (`posix_fadvise(DONTNEED)`; that they are
  gone is asked of the system, with `RWF_NOWAIT`).
- Training: steps on rows from the cache against the same steps on rows that are gathered from
  memory, without dropping pages: an epoch goes on while the last one's pages are there.
- Mixing: images a batch draws on, and more, for the cache and the streaming store, from images
  that are sorted by class.

All take turns in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.end_to_end import sae_configs
from benchmarks.ratios import Ratio, ratio_of, seconds_in_turns
from benchmarks.store_rate import PixelsReady, bare_tower, load
from vit_sae_plugin.activations import RowStore, ViTActivationsStore
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.activations.cache import (
    ActivationCache,
    CachePlan,
    CacheStore,
    plan_cache,
    write_cache,
    write_shards,
)
from vit_sae_plugin.activations.cache.cache_plan import CachedImages
from vit_sae_plugin.activations.cache.shard_buffer import ShardBuffer
from vit_sae_plugin.activations.mixing import Mixing, measure_mixing
from vit_sae_plugin.datasets import ArrayImages, SkippedImages, open_images
from vit_sae_plugin.datasets.image_loader import ImageBatch
from vit_sae_plugin.datasets.subsets import SelectedImages
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.saes import new_training_sae
from vit_sae_plugin.training import ViTSAERunnerConfig
from vit_sae_plugin.training.vit_sae_trainer import ViTSAETrainer

TOWER, IMAGES_A_BATCH, BATCHES_A_SHARD, SHARDS = "ViT-B-32", 16, 1, 3
HOOK, D_IN, N_TOKENS = "blocks.10.hook_resid_post", 768, 50
N_CACHED_IMAGES, CACHED_PER_SHARD = 2400, 800
BATCH_ROWS, STEPS_A_ROUND = 1024, 8


def writing(rounds: int, folder: Path) -> list[Ratio]:
    """Images a second into a cache against the bare tower's."""
    model = load(TOWER)
    n_layers, n_images = model.cfg.n_layers, IMAGES_A_BATCH * BATCHES_A_SHARD * SHARDS
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(IMAGES_A_BATCH, 3, *model.cfg.image_size, generator=generator)
    model.preprocess = PixelsReady(pixels[0])
    images = ArrayImages(np.zeros((n_images, 8, 8, 3), dtype=np.uint8))
    last = f"blocks.{n_layers - 1}.hook_resid_post"
    hooks = {
        "one hook": [last],
        "four hooks": [f"blocks.{n_layers * i // 4 - 1}.hook_resid_post" for i in (1, 2, 3)]
        + [last],
    }

    def plans(name: str) -> Iterator[CachePlan]:
        for number in range(rounds + 1):  # one to warm up
            yield plan_cache(
                folder / f"{name}-{number}",
                model,
                images,
                hook_names=hooks[name],
                batch_size_images=IMAGES_A_BATCH,
                images_per_shard=IMAGES_A_BATCH * BATCHES_A_SHARD,
            )

    waiting = {name: iter(list(plans(name))) for name in hooks}

    @torch.no_grad()
    def tower() -> None:
        for _ in range(n_images // IMAGES_A_BATCH):
            bare_tower(model.bare_model.visual, pixels, n_layers)

    def write(name: str) -> Callable[[], object]:
        return lambda: write_shards(next(waiting[name]), model, images, progress=False)

    seconds = seconds_in_turns(
        {"tower": tower, **{name: write(name) for name in hooks}}, rounds, warm_up=1
    )
    fastest = n_images / min(seconds["tower"])
    found = []
    for name, goal in (("one hook", "≥ 0.95"), ("four hooks", "≥ 0.90")):
        rate = n_images / min(seconds[name])
        n_bytes = N_TOKENS * D_IN * 4 * len(hooks[name])
        found.append(
            ratio_of(
                f"writing a cache, {name}",
                seconds["tower"],
                seconds[name],
                "the bare tower",
                goal,
                f"{TOWER}, {rate:.1f} images/s against {fastest:.1f}",
                {"images_per_second": rate, "bytes_per_second": rate * n_bytes},
            )
        )
    return found


def cache_of_random_rows(folder: Path, dtype: str = "float32") -> ActivationCache:
    """A cache of ViT-B/32's size whose rows are drawn: reading doesn't ask what they are."""
    source = ActivationSource(HOOK, model_name=TOWER, n_tokens=N_TOKENS, grid=[7, 7])
    described = source.to_metadata()
    del described["hook_name"]
    tokens = [[-1, -1, 0], *([row, column, 3] for row in range(7) for column in range(7))]
    plan = CachePlan(
        folder,
        model=described,
        hooks={HOOK: D_IN},
        tokens=tokens,
        dtype=dtype,
        images_per_shard=CACHED_PER_SHARD,
        batch_size_images=CACHED_PER_SHARD,
        parts=[CachedImages("random", "", N_CACHED_IMAGES)],
    )
    folder.mkdir()
    plan.save()
    generator = torch.Generator().manual_seed(0)
    buffer = ShardBuffer(plan)
    for shard in plan.shards:
        buffer.start(shard)
        index = torch.arange(shard.start, shard.start + shard.n_images)
        batch = ImageBatch(
            torch.empty(0), index, torch.full_like(index, -1), [str(i) for i in index.tolist()], 0
        )
        buffer.add(batch, [torch.randn(shard.n_images, N_TOKENS, D_IN, generator=generator)])
        buffer.save(SkippedImages(), shard.n_images)
    return ActivationCache(folder)


def row_files(cache: ActivationCache) -> list[Path]:
    """The files that hold the hook's rows, in order."""
    return sorted(cache.path.glob(f"shards/*/{HOOK}.rows.bin"))


def drop_pages(files: list[Path]) -> float:
    """Drop files from the page cache; returns the share of their megabytes still there."""
    n_there = n_asked = 0
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            for start in range(0, path.stat().st_size, 1 << 20):
                n_asked += 1
                with contextlib.suppress(BlockingIOError):
                    n_there += os.preadv(descriptor, [bytearray(1)], start, os.RWF_NOWAIT)
        finally:
            os.close(descriptor)
    return n_there / n_asked


def read_in_order(files: list[Path]) -> None:
    """Every byte, a megabyte at a time, into the same memory."""
    memory = bytearray(1 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(memory):
                pass


def reading(rounds: int, cache: ActivationCache) -> list[Ratio]:
    """An epoch of shuffled batches against a sequential read, both from the disk."""
    files = row_files(cache)
    n_bytes = sum(path.stat().st_size for path in files)
    left: list[float] = []
    seconds: dict[str, list[float]] = {"shuffled": [], "in order": []}

    def epoch() -> None:
        store = CacheStore(cache, hook_name=HOOK, train_batch_size_tokens=BATCH_ROWS)
        for _ in range(cache.n_rows // BATCH_ROWS):
            next(store)
        store.close()

    for number in range(-1, rounds):
        for name, run in (("shuffled", epoch), ("in order", lambda: read_in_order(files))):
            left.append(drop_pages(files))
            start = time.perf_counter()
            run()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    rates = {name: n_bytes / min(its) for name, its in seconds.items()}
    note = (
        f"{rates['shuffled'] / 1e6:.0f} MB/s against {rates['in order'] / 1e6:.0f}; pages dropped "
        f"by posix_fadvise, at most {max(left):.0%} stayed"
    )
    return [
        ratio_of(
            "shuffled reading of a cache",
            seconds["in order"],
            seconds["shuffled"],
            "a sequential read of the same bytes",
            "≥ 0.5",
            note,
            {
                "bytes_per_second": rates["shuffled"],
                "rows_per_second": cache.n_rows / min(seconds["shuffled"]),
                "sequential_bytes_per_second": rates["in order"],
            },
        )
    ]


class RowsInMemory(RowStore):
    """Batches gathered from one tensor, in a new random order each epoch."""

    def __init__(self, rows: Tensor, batch_rows: int) -> None:
        self.rows = rows
        self.d_in = rows.shape[1]
        self.batch_rows = batch_rows
        self._batches: Iterator[Tensor] = iter(())

    def __next__(self) -> Tensor:
        chosen = next(self._batches, None)
        if chosen is None or len(chosen) < self.batch_rows:
            self._batches = iter(torch.randperm(len(self.rows)).split(self.batch_rows))
            chosen = next(self._batches)
        return self.rows.index_select(0, chosen)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def training(rounds: int, cache: ActivationCache) -> list[Ratio]:
    """Steps on rows from a cache against steps on rows in memory."""
    memory = RowsInMemory(torch.cat([cache.tensor(HOOK, s) for s in cache.shards]), BATCH_ROWS)
    found = []
    for architecture, sae_cfg in sae_configs().items():
        cfg = ViTSAERunnerConfig(
            sae=sae_cfg,
            training_tokens=10**9,
            train_batch_size_tokens=BATCH_ROWS,
            device="cpu",
            output_path=None,
        )
        # a round takes as many batches as the buffer holds, so that each reads one buffer
        store = CacheStore(
            cache,
            hook_name=HOOK,
            train_batch_size_tokens=BATCH_ROWS,
            n_batches_in_buffer=STEPS_A_ROUND,
        )
        trainer = ViTSAETrainer(
            cfg.to_sae_trainer_config(), new_training_sae(sae_cfg, "cpu"), memory
        )

        def steps(rows: RowStore, trainer: ViTSAETrainer = trainer) -> Callable[[], None]:
            def run() -> None:
                for batch in islice(rows, STEPS_A_ROUND):
                    trainer.step(batch)

            return run

        seconds = seconds_in_turns({"cache": steps(store), "memory": steps(memory)}, rounds)
        store.close()
        n_rows = STEPS_A_ROUND * BATCH_ROWS
        rate = n_rows / min(seconds["cache"])
        found.append(
            ratio_of(
                f"training {architecture} from a cache",
                seconds["memory"],
                seconds["cache"],
                "training from rows in memory",
                "≥ 0.9",
                f"768 → 6,144, batches of 1,024; {rate:,.0f} rows/s",
                {"rows_per_second": rate},
            )
        )
    return found


def mixing(folder: Path, n_images: int = 480) -> dict[str, Mixing]:
    """How the cache and the streaming store mix images that are sorted by class."""
    model = HookedViT.from_pretrained("shapes-clip")
    source = open_images(f"shapes:train?n_images={n_images}&n_objects=1")
    images = SelectedImages(source, np.argsort(source.labels(), kind="stable"))
    hook = "blocks.2.hook_resid_post"
    cache = write_cache(folder, model, images, hook_names=[hook], progress=False)
    settings: dict[str, Any] = {
        "hook_name": hook,
        "train_batch_size_tokens": BATCH_ROWS,
        "n_batches_in_buffer": 10,
        "with_coordinates": True,
    }
    n_batches = 2 * cache.n_rows // BATCH_ROWS  # two epochs
    stores = {
        "cache": CacheStore(cache, **settings),
        "streaming store": ViTActivationsStore(model, images, **settings),
        "streaming store, images in order": ViTActivationsStore(
            model, images, shuffle_images=False, **settings
        ),
    }
    return {name: measure_mixing(store, n_batches) for name, store in stores.items()}


def mixing_as_ratios(found: dict[str, Mixing]) -> list[Ratio]:
    """Images a batch draws on, over what uniform sampling would."""
    lines = []
    for name, its in found.items():
        ratio = its.images_per_batch / its.images_if_uniform
        note = (
            f"{its.images_per_batch:.0f} images in {its.batch_rows:,} rows, images sorted by "
            f"class; neighbours' correlation {its.neighbor_correlation:+.3f}, variance of batches' "
            f"means {its.batch_variance_ratio:.2f} × that of random rows"
        )
        lines.append(Ratio(f"mixing, {name}", ratio, ratio, ratio, "uniform sampling", None, note))
    return lines


PARTS = ("writing", "reading", "training", "mixing")


def lines(rounds: int, parts: Sequence[str] = PARTS) -> Iterator[Ratio]:
    """All of it, part after part."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "writing" in parts:
            yield from writing(rounds, folder)
        if "reading" in parts or "training" in parts:
            cache = cache_of_random_rows(folder / "random")
            if "reading" in parts:
                yield from reading(rounds, cache)
            if "training" in parts:
                yield from training(rounds, cache)
        if "mixing" in parts:
            yield from mixing_as_ratios(mixing(folder / "mixing"))


def measure(rounds: int = 7) -> list[Ratio]:
    """All of it, for `make bench`."""
    return list(lines(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    for line in lines(args.rounds, args.only):
        goal = "" if line.goal is None else f" (goal {line.goal})"
        print(
            f"{line.name}: {line.ratio:.3f} [{line.low:.3f}, {line.high:.3f}] of {line.against}"
            f"{goal}; {line.note}",
            flush=True,
        )


if __name__ == "__main__":
    main()
