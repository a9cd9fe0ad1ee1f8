"""What the number format of a cache does to the SAEs that are trained from it.

    python -m benchmarks.cache_formats

The same rows of shapes-clip are cached in each format; SAEs of several seeds are trained from each,
on the same rows in the same order, and measured on other images' rows in float32. Differences are
taken seed by seed against float32, with 95 % intervals (Student's t). Two controls say what a
difference means: another seed's float32, and a format that is known to be coarse (4 bits,
simulated).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from vit_sae_plugin.activations.cache import ActivationCache, write_cache
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.training import ViTSAERunnerConfig, ViTSAETrainingRunner

HOOK = "blocks.2.hook_resid_post"
FORMATS = ("float32", "bfloat16", "float16", "int8")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "topk_ghost": {"k": 16},
    "patchsae": {"l1_coefficient": 1e-3},
}
D_SAE, BATCH_ROWS = 512, 512


def held_out_rows(model: HookedViT, folder: Path, n_images: int) -> Tensor:
    """Rows of images that no SAE is trained on, float32."""
    images = f"shapes:test?n_images={n_images}"
    cache = write_cache(folder / "held_out", model, images, hook_names=[HOOK], progress=False)
    return torch.cat([cache.tensor(HOOK, shard) for shard in cache.shards])


@torch.no_grad()
def measures(sae: Any, rows: Tensor) -> dict[str, float]:
    """Explained variance, mean number of active latents, share of latents that never fire."""
    sae.eval()
    error = l0 = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for part in rows.split(4096):
        latents = sae.encode(part)
        error += float((sae.decode(latents) - part).square().sum())
        l0 += float((latents != 0).sum())
        fired |= (latents != 0).any(0)
    variance = float((rows - rows.mean(0)).square().sum())
    return {
        "explained variance": 1 - error / variance,
        "L0": l0 / len(rows),
        "dead latents": 1 - float(fired.float().mean()),
    }


def trained(cache: ActivationCache, architecture: str, seed: int, n_steps: int) -> Any:
    """An SAE trained from a cache."""
    sae = {"architecture": architecture, "d_in": cache.d_in(HOOK), "d_sae": D_SAE}
    cfg = ViTSAERunnerConfig.from_dict(
        {
            "sae": {**sae, **ARCHITECTURES[architecture]},
            "dataset_path": f"cache:{cache.path}",
            "hook_name": HOOK,
            "train_batch_size_tokens": BATCH_ROWS,
            "training_tokens": BATCH_ROWS * n_steps,
            "output_path": None,
            "device": "cpu",
            "seed": seed,
            "verbose": False,
        }
    )
    return ViTSAETrainingRunner(cfg).run()


def coarser(cache: ActivationCache, folder: Path, n_bits: int) -> ActivationCache:
    """The cache with rows rounded to `n_bits` bits, a scale for each row, in float32 files."""
    shutil.copytree(cache.path, folder)
    for shard in cache.shards:
        path = next((folder / "shards").glob(f"*{shard:06d}/{HOOK}.rows.bin"))
        rows = cache.tensor(HOOK, shard)
        scales = rows.abs().amax(1, keepdim=True) / (2 ** (n_bits - 1) - 1)
        path.write_bytes(((rows / scales).round() * scales).numpy().tobytes())
    return ActivationCache(folder)


def compare(n_images: int, n_seeds: int, n_steps: int) -> pd.DataFrame:
    """One row for each architecture, format and measure."""
    model = HookedViT.from_pretrained("shapes-clip")
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = held_out_rows(model, folder, 300)
        images = f"shapes:train?n_images={n_images}"
        caches = {
            name: write_cache(
                folder / name, model, images, hook_names=[HOOK], dtype=name, progress=False
            )
            for name in FORMATS
        }
        caches["4 bits"] = coarser(caches["float32"], folder / "coarse", 4)
        for architecture in ARCHITECTURES:
            for seed in range(n_seeds):
                for name, cache in caches.items():
                    sae = trained(cache, architecture, seed, n_steps)
                    line = {"architecture": architecture, "seed": seed, "format": name}
                    found.append(line | measures(sae, rows))
                    print(found[-1], flush=True)
    return pd.DataFrame(found)


def differences(found: pd.DataFrame) -> pd.DataFrame:
    """Mean difference from float32 with its 95 % interval, seed by seed."""
    lines = []
    names = ["explained variance", "L0", "dead latents"]
    for architecture, group in found.groupby("architecture"):
        table = group.pivot(index="seed", columns="format", values=names)
        for measure in names:
            base = table[measure]["float32"]
            others = {name: table[measure][name] for name in table[measure] if name != "float32"}
            others["float32, next seed"] = pd.Series(np.roll(base, 1), index=base.index)
            for name, values in others.items():
                difference = values - base
                half = stats.t.ppf(0.975, len(base) - 1) * stats.sem(difference)
                lines.append(
                    {
                        "architecture": architecture,
                        "measure": measure,
                        "float32": base.mean(),
                        "format": name,
                        "difference": difference.mean(),
                        "low": difference.mean() - half,
                        "high": difference.mean() + half,
                    }
                )
    return pd.DataFrame(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-images", type=int, default=1000)
    parser.add_argument("--n-seeds", type=int, default=12)
    parser.add_argument("--n-steps", type=int, default=300)
    args = parser.parse_args()
    found = compare(args.n_images, args.n_seeds, args.n_steps)
    pd.set_option("display.width", 200, "display.max_rows", 100)
    print(differences(found).to_string(index=False, float_format=lambda x: f"{x:.5f}"))


if __name__ == "__main__":
    main()
