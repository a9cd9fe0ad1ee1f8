"""``vit-sae analyze``: what each latent responds to, as tables and as a browsable report."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.saved_sae import folder_beside, load_model, load_sae

if TYPE_CHECKING:
    from vit_sae_plugin.datasets import ImageSource


def run(args: argparse.Namespace) -> int:
    """Analyse, save the atlas, and write the report if one is asked for."""
    from vit_sae_plugin.analysis import analyze
    from vit_sae_plugin.datasets import open_images

    report_options = _report_options(args)
    if args.names is not None and not Path(args.names).is_file():
        raise ValueError(f"--names {args.names}: there is no such file; want names from a report")
    device = chosen_device(args.device)
    sae = load_sae(args.sae, device)
    images = open_images(args.images)
    if args.report is not None:
        from vit_sae_plugin.report import check_report_options

        check_report_options(args.report, n_images=images.n_images, **report_options)
    folder = args.output_path or folder_beside(args.sae, _folder_name(images))
    check_output_folder(folder)
    if args.report is not None:
        check_output_folder(args.report, "--report")
    if args.neuronpedia is not None:
        check_output_folder(args.neuronpedia, "--neuronpedia")
    model = load_model(sae, args, device)
    atlas = analyze(
        model,
        sae,
        images,
        aggregations=None if args.aggregations is None else _split(args.aggregations),
        threshold=args.threshold,
        n_reference_images=args.n_reference_images,
        batch_size_images=args.batch_size_images,
        n_workers=args.n_workers,
        folder=folder,
        overwrite=args.overwrite,
    )
    if args.names is not None:
        atlas.read_names(args.names)
    print(atlas)
    print(f"\nThe atlas is in {folder}; read it by LatentAtlas.load({str(folder)!r})")
    if args.report is not None:
        from vit_sae_plugin.report import write_report

        page = write_report(atlas, images, model, sae, args.report, **report_options)
        print(f"Open this page in a browser:  {page.resolve()}")
    if args.neuronpedia is not None:
        from vit_sae_plugin.report import export_neuronpedia

        written = export_neuronpedia(model, sae, atlas, images, args.neuronpedia)
        print(f"Rows for Neuronpedia are in {written}; NOT_INCLUDED.md there says what is missing")
    return 0


def _report_options(args: argparse.Namespace) -> dict[str, Any]:
    """What ``write_report`` is told beyond the report's folder."""
    given = {
        "n_explained": args.n_explained,
        "n_explained_references": args.n_explained_references,
        "n_latents": args.n_latents,
        "explain": None if args.explain is None else _indices(args.explain),
    }
    given = {name: value for name, value in given.items() if value is not None}
    if args.report is None and given:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} goes with --report FOLDER")
    if len(given.keys() & {"n_explained", "explain"}) == 2:
        raise ValueError("give either --explain or --n-explained, not both")
    return given


_LONGEST_NAME = 150


def _folder_name(images: ImageSource) -> str:
    """A name for the atlas of these images: another data set's atlas has another."""
    plain = re.sub(r"[^\w.-]+", "-", images.name).strip("-")
    plain = plain.encode()[:_LONGEST_NAME].decode(errors="ignore")  # systems allow 255 bytes
    return f"atlas-{plain}-{images.fingerprint()[:8]}"


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in _split(text)]
    except ValueError:
        raise ValueError(
            f"--explain {text!r}: want indices of images separated by commas, such as 3,14"
        ) from None
