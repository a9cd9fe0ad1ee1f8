"""``vit-sae analyze --compare``: one SAE on a plain and on an adapted model."""

from __future__ import annotations

import argparse

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.saved_sae import folder_beside, load_model, load_sae

PAGE = "index.html"
_ONLY_ATLAS = (
    "embeddings",
    "aggregations",
    "overwrite",
    "report",
    "n_latents",
    "explain",
    "n_explained",
    "n_explained_references",
    "names",
    "neuronpedia",
)


def run(args: argparse.Namespace) -> int:
    """Compare the models, save the tables, and write a page."""
    from pathlib import Path

    from vit_sae_plugin.analysis.remapping.compare import compare_models
    from vit_sae_plugin.datasets import open_images
    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.report.comparison_page import write_comparison_page

    for name in _ONLY_ATLAS:
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} doesn't go with --compare")
    if args.images is None:
        raise ValueError("want --images SOURCE, labelled images, to compare the models on")
    folder = Path(args.output_path or folder_beside(args.sae, "comparison"))
    check_output_folder(folder)
    device = chosen_device(args.device)
    sae = load_sae(args.sae, device)
    images = open_images(args.images)
    ranking = None if args.ranking_images is None else open_images(args.ranking_images)
    plain = load_model(sae, args, device)
    adapted = HookedViT.from_pretrained(args.compare, device=device)
    comparison = compare_models(
        plain,
        adapted,
        sae,
        images,
        ranking=ranking,
        templates=args.templates,
        threshold=args.threshold,
        batch_size_images=args.batch_size_images,
        n_workers=args.n_workers,
        progress=True,
    )
    report = comparison.report()
    report.save(folder)
    page = write_comparison_page(folder / PAGE, comparison)
    print(report)
    print(f"\nThe tables are in {folder}. Open this page in a browser:  {page.resolve()}")
    return 0
