"""``vit-sae analyze``: what each latent responds to, as tables and as a browsable report."""

from __future__ import annotations

import argparse

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.saved_sae import folder_beside, load_model, load_sae


def run(args: argparse.Namespace) -> int:
    """Analyse, save the atlas, and write the report if one is asked for."""
    from vit_sae_plugin.analysis import analyze
    from vit_sae_plugin.datasets import open_images

    device = chosen_device(args.device)
    sae = load_sae(args.sae, device)
    images = open_images(args.images)
    model = load_model(sae, args, device)
    folder = args.output_path or folder_beside(args.sae, "atlas")
    atlas = analyze(
        model,
        sae,
        images,
        threshold=args.threshold,
        batch_size_images=args.batch_size_images,
        n_workers=args.n_workers,
        folder=folder,
    )
    print(atlas)
    print(f"\nThe atlas is in {folder}; read it by LatentAtlas.load({str(folder)!r})")
    if args.report is not None:
        from vit_sae_plugin.report import write_report

        page = write_report(
            atlas, images, model, sae, args.report, n_explained_images=args.n_explained
        )
        print(f"Open this page in a browser:  {page.resolve()}")
    return 0
