"""Do the latents of a trained SAE find the right thing in the right patches?

Prints, for the built-in shape scenes, how well the best latent for each shape, colour, coloured
shape and texture ranks and marks the patches that show it, beside single neurons, principal
components, random directions and others: as many as there are latents, as few as there are neurons,
and as sparse as the latents. Candidates are chosen on one half of the scenes, by average precision
and by AUROC, and scored on the other. Means over concepts, and their paired differences, come with
bootstrap intervals.

    python benchmarks/localization.py --output localization/patchsae   # trains first, some minutes
    python benchmarks/localization.py --architecture topk --k 16 --lr 3e-4
    python benchmarks/localization.py runs/demo/sae                    # one that is trained already
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from sae_lens import SAE

import vit_sae_plugin  # noqa: F401 (registers this package's architectures)
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.evaluation import EvaluationReport, localize
from vit_sae_plugin.evaluation.localization import BASELINES
from vit_sae_plugin.training import (
    ViTSAERunnerConfig,
    ViTSAETrainingRunner,
    complete_settings,
    load_preset,
)


def train(args: argparse.Namespace, folder: Path) -> SAE[Any]:
    """The demo's PatchSAE, on patches alone, and wider; or a TopK SAE on the same rows."""
    settings = load_preset("patchsae-shapes")
    n_steps = args.training_tokens // settings["train_batch_size_tokens"]
    settings |= {
        "hook_name": args.hook_name,
        "token_kind": "patches",
        "training_tokens": args.training_tokens,
        "lr_warm_up_steps": min(settings["lr_warm_up_steps"], n_steps // 4),
        "lr_decay_steps": n_steps // 5,
        "output_path": str(folder),
        "device": args.device,
        "seed": args.seed,
    }
    if args.architecture == "patchsae":
        settings["sae"] |= {"d_sae": args.d_sae, "l1_coefficient": args.l1_coefficient}
    else:
        settings["sae"] = {"architecture": args.architecture, "d_sae": args.d_sae, "k": args.k}
    if args.lr is not None:
        settings["lr"] = args.lr
    model = ActivationSource(args.hook_name, model_name=settings["model_name"]).load_model()
    d_in = model.hook_width(args.hook_name)
    settings = complete_settings(settings, d_in=d_in, n_rows_per_epoch=None)
    ViTSAETrainingRunner(ViTSAERunnerConfig.from_dict(settings)).run()
    return SAE.load_from_disk(folder / "sae", device=args.device)


def main() -> None:
    """Read the arguments, train if need be, measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sae", nargs="?", help="folder of an SAE that reads patches of shapes-clip")
    parser.add_argument("--d-sae", type=int, default=4096, help="latents of the SAE to train")
    parser.add_argument("--architecture", default="patchsae", choices=["patchsae", "topk"])
    parser.add_argument("--l1-coefficient", type=float, default=9e-4, help="λ of a PatchSAE")
    parser.add_argument("--k", type=int, default=16, help="latents that a TopK SAE keeps")
    parser.add_argument("--lr", type=float, help="learning rate (default: the demo's)")
    parser.add_argument("--hook-name", default="blocks.2.hook_resid_post", help="what it reads")
    parser.add_argument("--training-tokens", type=int, default=1_200_000)
    parser.add_argument("--images", default="shapes:test?n_images=2000", help="scenes with masks")
    parser.add_argument("--n-images", type=int, default=1200, help="how many of them")
    criteria = ["average_precision", "auroc"]
    parser.add_argument("--select-by", nargs="+", default=criteria, choices=criteria)
    parser.add_argument("--baselines", nargs="*", default=BASELINES, choices=BASELINES)
    parser.add_argument("--min-coverage", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder for the SAE, CSV and JSON")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folder = args.output or Path(scratch)
        if args.sae is None:
            sae = train(args, folder / "run")
        else:
            sae = SAE.load_from_disk(args.sae, device=args.device)
        model = ActivationSource.from_metadata(sae.cfg.metadata).load_model(args.device)
        report = localize(
            model,
            sae,
            args.images,
            n_images=args.n_images,
            select_by=args.select_by,
            min_coverage=args.min_coverage,
            baselines=args.baselines,
            seed=args.seed,
            progress=True,
        )
        show(report)
        if args.output:
            print(f"saved in {report.save(folder / 'localization')}")


def show(report: EvaluationReport) -> None:
    """Means with their intervals, a line for each score, and the differences likewise."""
    for name in ("summary", "differences"):
        print(f"\n{name}")
        print(_joined(report.tables[name]).to_string())
    for name, value in report.settings.items():
        print(f"{name}: {value}")
    for note in report.notes:
        print(f"note: {note}")


def _joined(table: pd.DataFrame) -> pd.DataFrame:
    """``0.259 (0.224 to 0.297)`` in place of three columns."""
    scores = [name for name in table.columns if f"{name}_low" in table.columns]
    columns = {"n_concepts": table["n_concepts"]}
    for score in scores:
        low, high = table[f"{score}_low"], table[f"{score}_high"]
        columns[score] = [
            f"{value:.3f} ({from_:.3f} to {to:.3f})"
            for value, from_, to in zip(table[score], low, high, strict=True)
        ]
    return pd.DataFrame(columns, index=table.index)


if __name__ == "__main__":
    main()
