"""``vit-sae export``: a plain SAELens SAE that loads without this plugin."""

from __future__ import annotations

import argparse
from pathlib import Path

from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.saved_sae import load_sae


def run(args: argparse.Namespace) -> int:
    """Export, and say how to load the result."""
    from vit_sae_plugin.activations import EmbeddingStatistics, fold_statistics
    from vit_sae_plugin.saes import save_exported
    from vit_sae_plugin.saes.export import check_new_folder

    if args.k is not None and args.architecture != "topk":
        raise ValueError("--k goes with --architecture topk")
    check_new_folder(Path(args.output_path))
    check_output_folder(args.output_path, "another name")
    sae = load_sae(args.sae)
    if sae.cfg.metadata.input_statistics is not None:
        fold_statistics(sae, EmbeddingStatistics.from_metadata(sae.cfg.metadata.input_statistics))
    save_exported(sae, args.output_path, architecture=args.architecture, k=args.k)
    print(f'Load it anywhere:  sae_lens.SAE.load_from_disk("{args.output_path}")')
    return 0
