"""One training step of TopK and BatchTopK SAEs: ours, SAELens's and overcomplete's, in turns.

    python -m benchmarks.other_libraries

The same rows in memory, the same widths, Adam and a gradient clipped at norm 1; each library's own
trainer does all that it does in a step. overcomplete's step is the body of its ``train_sae`` with
``monitoring=0``. Its BatchTopK and ours keep 64 latents of a row on average.

Needs the extra ``bench`` for overcomplete; without it those lines are left out and said to be.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from benchmarks.ratios import Ratio, ratio_of, seconds_in_turns
from vit_sae_plugin.activations import EmbeddingRows, EmbeddingStore
from vit_sae_plugin.training import ViTSAERunnerConfig, ViTSAETrainingRunner
from vit_sae_plugin.training.vit_sae_trainer import ViTSAETrainer

BATCH, D_IN, D_SAE, K = 1024, 768, 6144, 64
LR = 1e-4


def rows_like_activations(n_rows: int, d_in: int = D_IN, seed: int = 0) -> Tensor:
    """Sums of a few of many directions and some noise: rows that an SAE can learn."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(4 * d_in, d_in, generator=generator) / d_in**0.5
    strengths = torch.rand(n_rows, 4 * d_in, generator=generator)
    strengths = torch.where(strengths > 0.99, strengths, 0)
    return strengths @ directions + 0.1 * torch.randn(n_rows, d_in, generator=generator) / d_in**0.5


def config(sae_cfg: Any, n_rows: int) -> ViTSAERunnerConfig:
    """The settings of a run that never ends and writes nothing."""
    return ViTSAERunnerConfig(
        sae=sae_cfg,
        training_tokens=10**9,
        train_batch_size_tokens=n_rows,
        lr=LR,
        output_path=None,
        verbose=False,
        eval_every_n_steps=0,
        device="cpu",
    )


def our_step(sae_cfg: Any, rows: Tensor) -> Callable[[], None]:
    """A step of what `vit-sae train` would build, on these rows again and again."""
    cfg = config(sae_cfg, len(rows))
    store = EmbeddingStore(EmbeddingRows(rows.numpy()), train_batch_size_tokens=len(rows))
    runner = ViTSAETrainingRunner(cfg, override_store=store)
    trainer = ViTSAETrainer(cfg.to_sae_trainer_config(), runner.sae, store, optimizer=cfg.optimizer)
    return lambda: advance(trainer, rows)


def sae_lens_step(sae_cfg: Any, rows: Tensor) -> Callable[[], None]:
    """A step of SAELens's own class under SAELens's own trainer."""
    runner_cfg = config(sae_cfg, len(rows))
    sae = TrainingSAE.from_dict({**sae_cfg.to_dict(), "device": "cpu"})
    trainer: SAETrainer[Any, Any] = SAETrainer(
        cfg=runner_cfg.to_sae_trainer_config(), sae=sae, data_provider=iter([])
    )
    return lambda: advance(trainer, rows)


def advance(trainer: SAETrainer[Any, Any], rows: Tensor) -> None:
    """One step."""
    trainer.step(rows)
    trainer.n_training_steps += 1


def overcomplete_step(kind: str, rows: Tensor) -> Callable[[], None] | None:
    """A step of overcomplete's training; None where it isn't installed."""
    try:
        import matplotlib

        # its plots, imported with it, ask for a function that matplotlib 3.9 has dropped
        if not hasattr(matplotlib.cm, "get_cmap"):
            matplotlib.cm.get_cmap = matplotlib.colormaps.get_cmap
        from overcomplete.sae import BatchTopKSAE, TopKSAE
        from overcomplete.sae.trackers import DeadCodeTracker
    except ImportError as error:
        warnings.warn(f"overcomplete is left out ({error}); pip install overcomplete", stacklevel=2)
        return None
    torch.manual_seed(0)
    if kind == "topk":
        sae = TopKSAE(D_IN, D_SAE, top_k=K, encoder_module="linear")
    else:
        sae = BatchTopKSAE(D_IN, D_SAE, top_k=K * len(rows), encoder_module="linear")
    sae.train()
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR)
    tracker = DeadCodeTracker(D_SAE, "cpu")

    def step() -> None:
        optimizer.zero_grad()
        _, latents, reconstruction = sae(rows)
        loss = (rows - reconstruction).square().mean()
        tracker.update(latents)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return step


def measure(rounds: int = 7) -> list[Ratio]:
    """Their seconds ÷ ours: above 1, ours is faster."""
    rows = rows_like_activations(BATCH)
    table = []
    cfgs: dict[str, Any] = {
        "topk": TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K),
        "batchtopk": BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=float(K)),
    }
    for kind, sae_cfg in cfgs.items():
        runs: dict[str, Callable[[], None] | None] = {
            "ours": our_step(replace(sae_cfg), rows),
            "SAELens": sae_lens_step(replace(sae_cfg), rows),
            "overcomplete": overcomplete_step(kind, rows),
        }
        seconds = seconds_in_turns({name: run for name, run in runs.items() if run}, rounds)
        for name in ("SAELens", "overcomplete"):
            if name not in seconds:
                continue
            ours, theirs = statistics.median(seconds["ours"]), statistics.median(seconds[name])
            note = f"ours {1e3 * ours:.0f} ms, theirs {1e3 * theirs:.0f} ms"
            what = f"{kind}: {name}'s step"
            rates = {"ours_rows_per_second": BATCH / ours, "theirs_rows_per_second": BATCH / theirs}
            table.append(ratio_of(what, seconds[name], seconds["ours"], "ours", "≥ 1", note, rates))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for line in measure(args.rounds):
        print(
            f"{line.name} ÷ ours: {line.ratio:.2f} ({line.low:.2f} to {line.high:.2f}); {line.note}"
        )


if __name__ == "__main__":
    main()
