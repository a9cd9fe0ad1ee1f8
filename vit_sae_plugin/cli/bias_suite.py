"""``vit-sae eval --suite bias``: concepts that a classifier uses though they belong to a group."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.analysis import LatentAtlas
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.evaluation import EvaluationReport
    from vit_sae_plugin.hooked_vit import HookedViT


def check_bias_options(args: argparse.Namespace) -> None:
    """Raise where options are missing or don't go together."""
    if args.attribute is None:
        raise ValueError(
            "--suite bias wants --attribute NAME, a column that the images know, such as place"
        )
    if args.fit_images is None and args.find_images is None:
        raise ValueError(
            "--suite bias finds concepts on images of their own: --fit-images SOURCE, for a linear "
            "probe, or --find-images SOURCE, for a zero-shot classifier"
        )
    if args.n_images is not None:
        raise ValueError("--n-images doesn't go with --suite bias; give SOURCE fewer images")


def bias_suite(
    model: HookedViT,
    sae: SAE[Any],
    images: ImageSource,
    args: argparse.Namespace,
    folder: Path,
    atlas: LatentAtlas | None,
) -> EvaluationReport:
    """Run the study and draw its picture."""
    from vit_sae_plugin.atomic_files import write_file_atomically
    from vit_sae_plugin.concepts.bias import bias_study
    from vit_sae_plugin.report.bias_plot import plot_bias

    names = {} if atlas is None else {at: name.name for at, name in atlas.names.items()}
    report = bias_study(
        model,
        sae,
        images,
        attribute=args.attribute,
        fit_images=args.fit_images,
        find_images=args.find_images,
        reference_images=args.reference_images,
        elsewhere_images=args.elsewhere_images,
        templates=args.templates,
        refit=args.refit,
        names=names or None,
        batch_size_images=args.batch_size_images,
        n_workers=args.n_workers,
        progress=True,
    )
    figure = plot_bias(report.mending, report.prediction, names)
    folder.mkdir(parents=True, exist_ok=True)
    write_file_atomically(folder / "bias.png", lambda path: figure.savefig(path, dpi=160))
    return report
