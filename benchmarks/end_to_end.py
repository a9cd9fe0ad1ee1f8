"""Tokens per second of whole training, from images to weights, beside what it can't do without.

    python -m benchmarks.end_to_end

ViT-B/32 (random weights: they cost the same), tokens of block 10, a PatchSAE and a TopK SAE of
6,144 latents, batches of 1,024 tokens. Ours is the store and the trainer that `vit-sae train`
builds. Against it, on the same number of tokens:

- bare: the tower's own modules up to that block on pixels in memory, and a step's five bare matrix
  products (a ReLU SAE's);
- for rows in memory: the five products alone.

All take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from torch import Tensor

from benchmarks.ratios import Ratio, ratio_of, seconds_in_turns
from benchmarks.store_rate import bare_tower, load
from vit_sae_plugin.activations import EmbeddingRows, EmbeddingStore, RowStore
from vit_sae_plugin.datasets import ArrayImages
from vit_sae_plugin.saes import PatchTrainingSAEConfig
from vit_sae_plugin.training import ViTSAERunnerConfig, ViTSAETrainingRunner
from vit_sae_plugin.training.vit_sae_trainer import ViTSAETrainer

TOWER, LAYER = "ViT-B-32", 10
BATCH, D_IN, D_SAE, K = 1024, 768, 6144, 64
STEPS_A_ROUND = 5


def sae_configs() -> dict[str, Any]:
    """By architecture."""
    return {
        "patchsae": PatchTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE),
        "topk": TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K),
    }


def config(sae_cfg: Any) -> ViTSAERunnerConfig:
    """The settings of a run that never ends and writes nothing."""
    return ViTSAERunnerConfig(
        sae=sae_cfg,
        model_name=TOWER,
        hook_name=f"blocks.{LAYER}.hook_resid_post",
        training_tokens=10**9,
        train_batch_size_tokens=BATCH,
        n_batches_in_buffer=STEPS_A_ROUND,
        store_batch_size_images=32,
        eval_every_n_steps=0,
        output_path=None,
        verbose=False,
        device="cpu",
    )


def training(runner: ViTSAETrainingRunner, store: RowStore) -> Iterator[None]:
    """Step after step, as the runner's trainer takes them."""
    cfg = runner.cfg
    trainer = ViTSAETrainer(
        cfg.to_sae_trainer_config(),
        runner.sae,
        store,
        clip_grad_norm=cfg.clip_grad_norm,
        optimizer=cfg.optimizer,
    )
    for rows in store:
        trainer.step(rows)
        trainer.n_training_steps += 1
        yield


@torch.no_grad()
def five_products(rows: Tensor, W_enc: Tensor, W_dec: Tensor) -> None:
    """Encode, decode, and the gradients of latents, decoder and encoder."""
    latents = rows @ W_enc
    reconstruction = latents @ W_dec
    reconstruction @ W_dec.T
    latents.T @ reconstruction
    rows.T @ latents


def steps(run: Iterator[None]) -> Callable[[], None]:
    """A round of them."""
    return lambda: list(islice(run, STEPS_A_ROUND)).clear()


def measure(rounds: int = 7) -> list[Ratio]:
    """Rates of whole training ÷ those of the bare work."""
    model = load(TOWER)
    size = model.cfg.image_size
    pictures = np.random.default_rng(0).integers(0, 256, (256, *size, 3), np.uint8)
    n_tokens = BATCH * STEPS_A_ROUND
    n_images = -(-n_tokens // model.cfg.n_tokens)
    pixels = torch.randn(32, 3, *size)
    rows = torch.randn(BATCH, D_IN)
    W_enc, W_dec = torch.randn(D_IN, D_SAE), torch.randn(D_SAE, D_IN)

    @torch.no_grad()
    def products() -> None:
        for _ in range(STEPS_A_ROUND):
            five_products(rows, W_enc, W_dec)

    @torch.no_grad()
    def tower() -> None:
        for first in range(0, n_images, len(pixels)):
            bare_tower(model.bare_model.visual, pixels[: n_images - first], LAYER + 1)

    runs: dict[str, Callable[[], object]] = {"products": products, "tower": tower}
    for kind, sae_cfg in sae_configs().items():
        streaming = ViTSAETrainingRunner(
            config(sae_cfg), override_model=model, override_images=ArrayImages(pictures)
        )
        runs[f"{kind} streaming"] = steps(training(streaming, streaming.store))
        embeddings = EmbeddingRows(torch.randn(8 * BATCH, D_IN).numpy())
        store = EmbeddingStore(embeddings, train_batch_size_tokens=BATCH)
        in_memory = ViTSAETrainingRunner(config(sae_configs()[kind]), override_store=store)
        runs[f"{kind} in memory"] = steps(training(in_memory, store))
    seconds = seconds_in_turns(runs, rounds)
    bare = [a + b for a, b in zip(seconds["tower"], seconds["products"], strict=True)]
    table = []
    for kind in sae_configs():
        for what, against, below in (
            ("streaming", "bare tower and five products", bare),
            ("in memory", "five products", seconds["products"]),
        ):
            taken = seconds[f"{kind} {what}"]
            rate = n_tokens / statistics.median(taken)
            table.append(
                ratio_of(
                    f"tokens/s, {kind}, {what}",
                    below,  # rates are the inverse of times
                    taken,
                    against,
                    note=f"{rate:,.0f} tokens/s",
                    rates={"rows_per_second": rate},
                )
            )
    images = n_images / statistics.median(seconds["tower"])
    decoding = seconds["patchsae streaming"]
    table.append(
        ratio_of(
            f"share of the bare tower in the streaming patchsae run ({TOWER})",
            seconds["tower"],
            decoding,
            "streaming patchsae",
            note=f"bare tower {images:,.1f} images/s",
            rates={"images_per_second": images, "tokens_per_image": model.cfg.n_tokens},
        )
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for line in measure(args.rounds):
        print(
            f"{line.name} ÷ {line.against}: {line.ratio:.2f} ({line.low:.2f} to {line.high:.2f}); "
            f"{line.note}"
        )


if __name__ == "__main__":
    main()
