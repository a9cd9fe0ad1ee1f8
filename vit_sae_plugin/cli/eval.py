"""``vit-sae eval``: the measures of a saved SAE, on screen and as CSV and JSON."""

from __future__ import annotations

import argparse

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.saved_sae import folder_beside, load_model, load_sae


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables and save them."""
    from vit_sae_plugin.datasets import open_images
    from vit_sae_plugin.evaluation import evaluate_sae

    device = chosen_device(args.device)
    sae = load_sae(args.sae, device)
    images = open_images(args.images)
    model = load_model(sae, args, device)
    templates = args.templates
    if templates is None and sae.cfg.metadata.model_name == "shapes-clip":
        templates = "shapes"
    report = evaluate_sae(
        model,
        sae,
        images,
        batch_size_images=args.batch_size_images,
        n_images=args.n_images,
        templates=templates,
        n_workers=args.n_workers,
        progress=True,
    )
    print(report)
    folder = report.save(args.output_path or folder_beside(args.sae, "evaluation"))
    print(f"\nSaved as CSV and JSON in {folder}")
    return 0
