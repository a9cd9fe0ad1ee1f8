"""``vit-sae export``: what SAELens reads without this plugin: a plain SAE, or a cache's rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.saved_sae import load_sae

if TYPE_CHECKING:
    from vit_sae_plugin.activations.cache import ActivationCache


def run(args: argparse.Namespace) -> int:
    """Export, and say how to load the result."""
    from vit_sae_plugin.activations.cache.cache_names import open_cache

    cache = open_cache(args.sae)
    if cache is not None:
        return _export_cache(cache, args)
    if args.hook_name or args.dtype:
        raise ValueError("--hook-name and --dtype go with cache:FOLDER")
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
    save_exported(sae, args.output_path, architecture=args.architecture or "standard", k=args.k)
    print(f'Load it anywhere:  sae_lens.SAE.load_from_disk("{args.output_path}")')
    return 0


def _export_cache(cache: ActivationCache, args: argparse.Namespace) -> int:
    from vit_sae_plugin.activations.cache.sae_lens_export import export_to_sae_lens

    if args.architecture is not None or args.k is not None:
        raise ValueError("--architecture and --k go with an SAE's folder, not with cache:FOLDER")
    check_output_folder(args.output_path, "another name")
    export_to_sae_lens(
        cache,
        args.output_path,
        hook_names=args.hook_name,
        dtype=args.dtype or "float32",
        progress=True,
    )
    hook = (args.hook_name or cache.hook_names)[0]
    print(
        f"Read it by SAELens:  use_cached_activations=True, "
        f"cached_activations_path={args.output_path!r}, hook_name={hook!r}, "
        f"context_size={cache.n_tokens}, d_in={cache.d_in(hook)}"
    )
    return 0
