"""Do the latents of a trained SAE find the right thing in the right patches?

Prints, for the built-in shape scenes, how well the best latent for each shape, colour, coloured
shape and texture ranks and marks the patches that show it, beside the same latents before ReLU,
single neurons, principal components, random directions, and those cut off to be as sparse as the
latents. Latents are chosen on one half of the scenes, by average precision and by AUROC, and scored
on the other.

    python benchmarks/localization.py                      # trains the SAE first, some minutes
    python benchmarks/localization.py --d-sae 1024 --l1-coefficient 9e-4 --training-tokens 1200000
    python benchmarks/localization.py runs/demo/sae        # one that is trained already
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from sae_lens import SAE

import vit_sae_plugin  # noqa: F401 (registers this package's architectures)
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation import localize
from vit_sae_plugin.training import (
    ViTSAERunnerConfig,
    ViTSAETrainingRunner,
    complete_settings,
    load_preset,
)


def train(args: argparse.Namespace, folder: Path) -> SAE[Any]:
    """The demo's PatchSAE, on patches alone, and wider."""
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
    settings["sae"] |= {"d_sae": args.d_sae, "l1_coefficient": args.l1_coefficient}
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
    parser.add_argument("--l1-coefficient", type=float, default=9e-4, help="its λ")
    parser.add_argument("--hook-name", default="blocks.2.hook_resid_post", help="what it reads")
    parser.add_argument("--training-tokens", type=int, default=1_200_000)
    parser.add_argument("--images", default="shapes:test?n_images=2000", help="scenes with masks")
    parser.add_argument("--n-images", type=int, default=1200, help="how many of them")
    criteria = ["average_precision", "auroc"]
    parser.add_argument("--select-by", nargs="+", default=criteria, choices=criteria)
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
        for criterion in args.select_by:
            report = localize(
                model,
                sae,
                open_images(args.images),
                n_images=args.n_images,
                select_by=criterion,
                min_coverage=args.min_coverage,
                seed=args.seed,
                progress=True,
            )
            print(f"\nlatents chosen by {criterion}")
            print(report.tables["summary"].round(3).to_string())
            for name, value in report.settings.items():
                print(f"{name}: {value}")
            for note in report.notes:
                print(f"note: {note}")
            if args.output:
                print(f"saved in {report.save(folder / criterion)}")


if __name__ == "__main__":
    main()
