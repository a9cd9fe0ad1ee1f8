"""Do the latents of a trained SAE find the right thing in the right patches?

Prints, for the built-in shape scenes, how well the best latent for each shape, colour, coloured
shape and texture ranks and marks the patches that show it, beside single neurons, principal
components and random directions. Latents are chosen on one half of the scenes, scored on the other.

    python benchmarks/localization.py runs/demo/sae
    python benchmarks/localization.py runs/demo/sae --n-images 1000 --select-by auroc
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sae_lens import SAE

import vit_sae_plugin  # noqa: F401 (registers this package's architectures)
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation import localize


def main() -> None:
    """Read the arguments, measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sae", help="folder of a saved SAE that reads patches of shapes-clip")
    parser.add_argument("--images", default="shapes:test?n_images=2000", help="scenes with masks")
    parser.add_argument("--n-images", type=int, help="how many of them (default: all)")
    parser.add_argument(
        "--select-by", default="average_precision", choices=["average_precision", "auroc"]
    )
    parser.add_argument("--min-coverage", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for CSV and JSON")
    args = parser.parse_args()

    sae = SAE.load_from_disk(args.sae, device=args.device)
    model = ActivationSource.from_metadata(sae.cfg.metadata).load_model(args.device)
    report = localize(
        model,
        sae,
        open_images(args.images),
        n_images=args.n_images,
        select_by=args.select_by,
        min_coverage=args.min_coverage,
        progress=True,
    )
    print(report.tables["summary"].round(3).to_string())
    for name, value in report.settings.items():
        print(f"{name}: {value}")
    for note in report.notes:
        print(f"note: {note}")
    if args.output:
        print(f"saved in {report.save(args.output)}")


if __name__ == "__main__":
    main()
