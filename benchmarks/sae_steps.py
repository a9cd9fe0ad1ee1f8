"""Time of whole training steps, beside the five matrix products that a ReLU SAE can't do without.

    python -m benchmarks.sae_steps

*Products*: encode, decode, and the gradients of latents, decoder and encoder, bare. A *step* is all
that the trainer does with a batch: forward and backward pass, counting of firing latents, the
gradients' norm, clipping, the optimizer. All take turns in one process, round after round, so that
a slow spell of the machine strikes each, and each step has the products as its neighbour, since a
processor's clock depends on what it did just before. A ratio is the median over the rounds of a
step's time divided by its neighbour's.

*Published* ratios are those of the authors' (or SAELens's) code, measured against the same products
on another machine.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    SAETrainer,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAEConfig
from torch import Tensor

from benchmarks.ratios import Ratio, ratio_of, seconds_in_turns
from vit_sae_plugin.saes import (
    MatryoshkaTopKTrainingSAEConfig,
    PatchTrainingSAEConfig,
    TopKGhostTrainingSAEConfig,
    new_training_sae,
)
from vit_sae_plugin.training import ViTSAETrainer

N_ACTIVE = 64


@dataclass(frozen=True)
class Sizes:
    """Of the batch and the SAE."""

    batch: int = 1024
    d_in: int = 768
    d_sae: int = 6144
    device: str = "cpu"

    def rows(self) -> Tensor:
        return torch.randn(self.batch, self.d_in, device=self.device)


@dataclass(frozen=True)
class Case:
    """A training step to be measured."""

    name: str
    config: Callable[[Sizes], TrainingSAEConfig]
    goal: float | None = None
    published: float | None = None
    trainer: type[SAETrainer[Any, Any]] = ViTSAETrainer
    clip_grad_norm: float | None = 1.0
    """Only ``ViTSAETrainer`` takes another than 1."""
    share_dead: float = 0.0
    """Share of the latents that don't fire, and haven't for long."""
    share_positive: float = 0.5
    """Share of the other latents' pre-activations above zero; half are at initialisation."""
    n_parts: int = 1
    """Only ``ViTSAETrainer`` takes more."""
    autocast: bool = False
    """To bfloat16."""
    compiled: bool = False
    """As ``compile_sae`` does it."""
    note: str = ""

    def described(self, products_s: Sequence[float]) -> str:
        """The note, the published ratio and the products' own time."""
        published = f"published code {self.published}" if self.published else ""
        products_ms = f"the five {1e3 * statistics.median(products_s):.0f} ms"
        return "; ".join(filter(None, [self.note, published, products_ms]))


def _patchsae(sizes: Sizes) -> PatchTrainingSAEConfig:
    return PatchTrainingSAEConfig(d_in=sizes.d_in, d_sae=sizes.d_sae)


def _topk(sizes: Sizes) -> TopKTrainingSAEConfig:
    return TopKTrainingSAEConfig(d_in=sizes.d_in, d_sae=sizes.d_sae, k=N_ACTIVE)


def _topk_ghost(sizes: Sizes) -> TopKGhostTrainingSAEConfig:
    return TopKGhostTrainingSAEConfig(d_in=sizes.d_in, d_sae=sizes.d_sae, k=N_ACTIVE)


def _batchtopk(sizes: Sizes) -> BatchTopKTrainingSAEConfig:
    return BatchTopKTrainingSAEConfig(d_in=sizes.d_in, d_sae=sizes.d_sae, k=N_ACTIVE)


def _matryoshka(sizes: Sizes) -> MatryoshkaTopKTrainingSAEConfig:
    return MatryoshkaTopKTrainingSAEConfig(d_in=sizes.d_in, d_sae=sizes.d_sae)


def _standard(sizes: Sizes) -> StandardTrainingSAEConfig:
    return StandardTrainingSAEConfig(d_in=sizes.d_in, d_sae=sizes.d_sae)


CASES = [
    Case("patchsae, none dead", _patchsae, 1.10, 1.30, clip_grad_norm=None),
    Case("patchsae, a quarter dead", _patchsae, 1.35, 1.83, clip_grad_norm=None, share_dead=0.25),
    Case(
        "patchsae, 2 % positive",
        _patchsae,
        clip_grad_norm=None,
        share_positive=0.02,
        note="as when trained",
    ),
    Case("topk, k 64", _topk, 1.0),
    Case("topk_ghost, k 64", _topk_ghost, 1.0),
    Case("batchtopk, k 64", _batchtopk, 1.1),
    Case("matryoshka_topk, half positive", _matryoshka, 1.3, 11.8),
    Case("matryoshka_topk, a fifth positive", _matryoshka, 1.15, share_positive=0.2),
    Case("patchsae, none dead, bf16", _patchsae, clip_grad_norm=None, autocast=True),
    Case(
        "patchsae, 2 % positive, bf16",
        _patchsae,
        clip_grad_norm=None,
        share_positive=0.02,
        autocast=True,
    ),
    Case("topk, k 64, bf16", _topk, autocast=True),
    Case("matryoshka_topk, half positive, bf16", _matryoshka, autocast=True),
    Case("patchsae, none dead, compile_sae", _patchsae, clip_grad_norm=None, compiled=True),
    Case("topk, k 64, SAELens's trainer", _topk, published=1.58, trainer=SAETrainer),
    Case("batchtopk, k 64, SAELens's trainer", _batchtopk, trainer=SAETrainer),
    Case("standard, SAELens's trainer", _standard, trainer=SAETrainer),
]


def make_step(case: Case, sizes: Sizes, rows: Tensor) -> Callable[[], object]:
    """A function that does one training step."""
    torch.manual_seed(0)
    cfg_sae = case.config(sizes)
    if case.trainer is ViTSAETrainer:
        sae = new_training_sae(cfg_sae, sizes.device)
    else:  # SAELens's own class
        sae = TrainingSAE.from_dict(cfg_sae.to_dict() | {"device": sizes.device})
    # Steps too small to change what is measured.
    cfg = SAETrainerConfig(
        total_training_samples=10**9 * len(rows),
        train_batch_size_samples=len(rows),
        lr=1e-9,
        lr_end=0.0,
        device=sizes.device,
        autocast=case.autocast,
    )
    settings: dict[str, Any] = {}
    if case.trainer is ViTSAETrainer:
        settings = {"clip_grad_norm": case.clip_grad_norm, "n_parts": case.n_parts}
    trainer = case.trainer(cfg, sae, iter(()), **settings)
    if case.compiled:
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    _set_positive_share(sae, rows, case.share_positive)
    n_dead = round(case.share_dead * sizes.d_sae)
    if n_dead:
        dead = torch.randperm(sizes.d_sae)[:n_dead].to(sizes.device)
        with torch.no_grad():
            sae.b_enc[dead] -= 8  # above all pre-activations
        trainer.n_forward_passes_since_fired[dead] = cfg.dead_feature_window + 1

    def step() -> None:
        trainer.step(rows)
        trainer.n_training_steps += 1

    return step


@torch.no_grad()
def _set_positive_share(sae: TrainingSAE[Any], rows: Tensor, share: float) -> None:
    if share == 0.5:
        return
    sae.b_enc.zero_()
    hidden_pre = sae.encode_with_hidden_pre(rows)[1]
    sae.b_enc.sub_(hidden_pre.flatten()[:1_000_000].quantile(1 - share))


def products(sizes: Sizes, rows: Tensor) -> Callable[[], None]:
    """A function that does the five products."""
    W_enc = torch.randn(sizes.d_in, sizes.d_sae, device=sizes.device)
    W_dec = torch.randn(sizes.d_sae, sizes.d_in, device=sizes.device)

    def five() -> None:
        with torch.no_grad():
            latents = rows @ W_enc
            reconstruction = latents @ W_dec
            reconstruction @ W_dec.T
            latents.T @ reconstruction
            rows.T @ latents

    return five


def measure(
    rounds: int = 7,
    cases: Sequence[Case] = CASES,
    sizes: Sizes | None = None,
    threads: int = 2,
) -> list[Ratio]:
    """The ratio of each case."""
    sizes = sizes or Sizes()
    n_threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        rows = sizes.rows()
        turns: dict[str, Callable[[], object]] = {}
        bare = products(sizes, rows)
        for case in cases:
            turns |= {f"products, {case.name}": bare, case.name: make_step(case, sizes, rows)}
        seconds = seconds_in_turns(turns, rounds, warm_up=3)
    finally:
        torch.set_num_threads(n_threads_before)
    results = []
    for case in cases:
        neighbour = seconds[f"products, {case.name}"]
        goal = None if case.goal is None else f"≤ {case.goal}"
        note = case.described(neighbour)
        results.append(
            ratio_of(case.name, seconds[case.name], neighbour, "five bare products", goal, note)
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=6144)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args()
    sizes = Sizes(args.batch, args.d_in, args.d_sae, args.device)
    cases = [case for case in CASES if args.only in case.name]
    print(f"batch {args.batch}, {args.d_in} to {args.d_sae}, {args.threads} threads")
    for result in measure(args.rounds, cases, sizes, args.threads):
        spread = f"({result.low:.2f} to {result.high:.2f})"
        goal = result.goal or ""
        print(f"{result.name:>38} {result.ratio:6.2f}  {spread:14}  {goal:>6}  {result.note}")


if __name__ == "__main__":
    main()
