"""One of two processes that share latents; what they find is read by the test that began them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.split_latents.short_runs import (
    CASES,
    D_SAE,
    K_LIST,
    draw_batches,
    new_trainer,
    resumed,
    tied_rows_of_latents,
    train,
    whole_weights,
)
from vit_sae_plugin.training.ranks import Ranks
from vit_sae_plugin.training.split_latents import (
    LatentSplit,
    initial_weights,
    save_whole_sae,
    whole_sae,
)
from vit_sae_plugin.training.split_latents.shared_top_k import select_shared_top_k


class LargestTensor(TorchDispatchMode):
    """Sees how many numbers the largest tensor that is made holds."""

    n_numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and not tensor.is_sparse:
                self.n_numbers = max(self.n_numbers, tensor.untyped_storage().nbytes() // 4)
        return result


def share_latents(folder: Path) -> None:
    """Train every case with another process, and leave what comes of it in the folder."""
    ranks = Ranks.from_environment()
    split = LatentSplit.of_all_processes("cpu")
    batches = draw_batches()
    for name in CASES:
        _train_case(name, split, batches, folder / name)
    _select_tied(split, folder)
    _measure_memory(split, folder)
    ranks.close()


def _train_case(name: str, split: LatentSplit, batches: torch.Tensor, folder: Path) -> None:
    trainer = new_trainer(name, split)
    begun = {key: tensor.clone() for key, tensor in whole_weights(trainer).items()}
    metrics = train(trainer, batches, 25)
    checkpoint = folder / "of two"
    trainer.write_files(checkpoint)
    metrics += train(trainer, batches)
    ended = whole_weights(trainer)
    dist.barrier()

    again = resumed(name, split, checkpoint)
    train(again, batches)
    of_one = resumed(name, split, folder / "of one")
    train(of_one, batches)
    found = {
        "begun": begun,
        "ended": ended,
        "resumed": whole_weights(again),
        "resumed from one": whole_weights(of_one),
    }
    sparsity = trainer.log_feature_sparsity
    trainer.set_final_sae_metadata()
    save_whole_sae(trainer.sae, folder / "sae" if split.is_first else None)
    b_dec = split.all_gather(trainer.sae.b_dec.detach())
    if split.is_first:
        for key, weights in found.items():
            tensors = {n: t.contiguous().clone() for n, t in weights.items()}
            save_file(tensors, folder / f"{key}.safetensors")
        save_file({"sparsity": sparsity, "b_dec": b_dec}, folder / "of_all.safetensors")
        (folder / "metrics.json").write_text(json.dumps(metrics))


def _select_tied(split: LatentSplit, folder: Path) -> None:
    rows = tied_rows_of_latents()[:, split.own(D_SAE)]
    kept = {}
    for positive_only in (True, False):
        chosen = select_shared_top_k(rows, K_LIST, split, positive_only=positive_only)
        levels = [
            torch.zeros_like(rows, dtype=torch.bool).scatter(-1, chosen.latents, chosen.kept(level))
            for level in range(len(K_LIST))
        ]
        kept[f"positive only {positive_only}"] = split.all_gather(torch.stack(levels).byte())
    if split.is_first:
        save_file(kept, folder / "kept.safetensors")


def _measure_memory(split: LatentSplit, folder: Path) -> None:
    """The largest tensor of creation, of a step and of saving, with small blocks."""
    initial_weights._NUMBERS_AT_A_TIME = whole_sae._BYTES_AT_A_TIME = 8 * D_SAE
    largest, batches = {}, draw_batches()[:4, :4].clone()
    for name in ("patchsae", "topk", "matryoshka_topk"):
        with LargestTensor() as seen:
            trainer = new_trainer(name, split)
            train(trainer, batches, 4)
            (folder / name / "again").mkdir(exist_ok=True)
            save_whole_sae(trainer.sae, folder / name / "again" if split.is_first else None)
        largest[name] = seen.n_numbers
    if split.is_first:
        (folder / "largest.json").write_text(json.dumps(largest))
