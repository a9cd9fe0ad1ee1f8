"""``vit-sae analyze``: what each latent responds to, as tables and as a browsable report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder, folder_name
from vit_sae_plugin.cli.saved_sae import folder_beside, load_model, load_sae

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations.cache import ActivationCache
    from vit_sae_plugin.activations.embedding_rows import EmbeddingRows
    from vit_sae_plugin.analysis import LatentAtlas
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT


_CHECKED = ("explain", "n_explained", "n_explained_references", "n_latents", "masking")
_ONLY_IMAGES = (
    "n_workers",
    "explain",
    "n_explained",
    "n_explained_references",
    "neuronpedia",
    "tree",
)


_WITH_PICTURES = ("report", "neuronpedia", "tree", *_CHECKED, "logit", "templates")


def run(args: argparse.Namespace) -> int:
    """Analyse, save the atlas, and write the report if one is asked for."""
    from vit_sae_plugin.activations.cache.cache_names import is_cache_text
    from vit_sae_plugin.analysis.atlas.atlas_folder import check_atlas_folder

    if args.compare is not None:
        from vit_sae_plugin.cli.compare import run as run_comparison

        return run_comparison(args)
    _check(args)
    if args.names is not None and not Path(args.names).is_file():
        raise ValueError(f"--names {args.names}: there is no such file; want names from a report")
    if is_cache_text(args.images):
        return _run_on_cache(args)
    report_options = _report_options(args)
    device = chosen_device(args.device)
    sae = load_sae(args.sae, device)
    images = _images(args, report_options)
    rows = _embeddings(args, sae.cfg.d_in)
    data: Any = images if rows is None else rows
    folder = Path(args.output_path or folder_beside(args.sae, folder_name("atlas", data)))
    check_output_folder(folder)
    check_atlas_folder(folder)
    if args.report is not None:
        check_output_folder(args.report, "--report")
    if args.neuronpedia is not None:
        check_output_folder(args.neuronpedia, "--neuronpedia")
    needs_model = rows is None or args.report is not None
    model: Any = load_model(sae, args, device) if needs_model else None
    atlas = _analyzed(args, model, sae, images, rows, folder)
    if args.names is not None:
        atlas.read_names(args.names)
    if args.tree:
        from vit_sae_plugin.concepts.latent_tree import latent_tree

        settings = {"k": args.tree_k, "batch_size_images": args.batch_size_images}
        tree = latent_tree(model, sae, images, n_workers=args.n_workers, progress=True, **settings)
        tree.save(folder)
    print(atlas)
    print(f"\nThe atlas is in {folder}; read it by LatentAtlas.load({str(folder)!r})")
    if args.report is not None:
        from vit_sae_plugin.report import write_report

        page = write_report(model, sae, atlas, images, args.report, **report_options)
        print(f"Open this page in a browser:  {page.resolve()}")
    if args.neuronpedia is not None:
        from vit_sae_plugin.report import export_neuronpedia

        written = export_neuronpedia(model, sae, atlas, images, args.neuronpedia)
        print(f"Rows for Neuronpedia are in {written}; NOT_INCLUDED.md there says what is missing")
    return 0


def _run_on_cache(args: argparse.Namespace) -> int:
    """The atlas from activations on disk: no model runs, and there are no pictures to show."""
    from vit_sae_plugin.activations.cache import CacheMismatchError
    from vit_sae_plugin.activations.cache.cache_names import open_cache
    from vit_sae_plugin.analysis.atlas.atlas_folder import check_atlas_folder
    from vit_sae_plugin.attached_sae.cached_sae import CachedPictures

    for name in (*_WITH_PICTURES, "embeddings", "model", "pretrained", "n_workers"):
        if getattr(args, name):
            raise ValueError(
                f"--{name.replace('_', '-')} doesn't go with --images {args.images}, for a cache "
                "holds activations and no pictures; make the atlas from it, then give the images "
                "with the same --output-path, which opens the finished atlas"
            )
    sae = load_sae(args.sae, chosen_device(args.device))
    cache = open_cache(args.images)
    if cache is None:
        raise CacheMismatchError(f"--images {args.images} is no cache; want cache:PATH")
    name = folder_name("atlas", CachedPictures(cache))
    folder = Path(args.output_path or folder_beside(args.sae, name))
    check_output_folder(folder)
    check_atlas_folder(folder)
    atlas = _analyzed(args, None, sae, cache, None, folder)
    if args.names is not None:
        atlas.read_names(args.names)
    print(atlas)
    print(f"\nThe atlas is in {folder}; read it by LatentAtlas.load({str(folder)!r})")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise where options don't go together."""
    if args.ranking_images is not None:
        raise ValueError("--ranking-images goes with --compare ADAPTED")
    if args.tree_k is not None and not args.tree:
        raise ValueError("--tree-k goes with --tree")
    if args.embeddings is None:
        if args.images is None:
            raise ValueError("want --images SOURCE or --embeddings FILE to look at")
        return
    unused = [] if args.report is not None else ["model", "pretrained"]
    for name in (*_ONLY_IMAGES, *unused):
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} doesn't go with --embeddings")
    if args.report is not None and args.images is None:
        raise ValueError("--report needs pictures; give --images SOURCE with the ids of the rows")


def _images(args: argparse.Namespace, report_options: dict[str, Any]) -> ImageSource | None:
    from vit_sae_plugin.datasets import open_images

    images = None if args.images is None else open_images(args.images)
    if args.report is not None and images is not None:
        from vit_sae_plugin.report import check_report_options

        checked = {name: value for name, value in report_options.items() if name in _CHECKED}
        check_report_options(args.report, n_images=images.n_images, **checked)
    return images


def _embeddings(args: argparse.Namespace, d_in: int) -> EmbeddingRows | None:
    from vit_sae_plugin.activations.embedding_rows import load_embedding_rows

    return None if args.embeddings is None else load_embedding_rows(args.embeddings, d_in=d_in)


def _analyzed(
    args: argparse.Namespace,
    model: HookedViT | None,
    sae: SAE[Any],
    images: ImageSource | ActivationCache | None,
    rows: EmbeddingRows | None,
    folder: Path,
) -> LatentAtlas:
    from vit_sae_plugin import analysis

    settings: dict[str, Any] = {
        "threshold": args.threshold,
        "n_reference_images": args.n_reference_images,
        "folder": folder,
        "overwrite": args.overwrite,
    }
    if args.aggregations is not None:
        settings["aggregations"] = _split(args.aggregations)
    if rows is not None:
        return analysis.analyze_embeddings(sae, rows, images, **settings)
    return analysis.analyze(
        model,
        sae,
        images,
        batch_size_images=args.batch_size_images,
        n_workers=args.n_workers,
        **settings,
    )


def _report_options(args: argparse.Namespace) -> dict[str, Any]:
    """What ``write_report`` is told beyond the report's folder."""
    given = {
        "n_explained": args.n_explained,
        "n_explained_references": args.n_explained_references,
        "n_latents": args.n_latents,
        "explain": None if args.explain is None else _indices(args.explain),
        "logit": None if args.logit is None else _logit(args.logit),
        "templates": args.templates,
        "masking": args.masking,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if args.report is None and given:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} goes with --report FOLDER")
    if "templates" in given and "logit" not in given:
        raise ValueError("--templates goes with --logit")
    if len(given.keys() & {"n_explained", "explain"}) == 2:
        raise ValueError("--explain and --n-explained are both given; want one of them")
    return given


def _logit(text: str) -> int | str:
    """A class by its index; anything else is a text, or "predicted"."""
    return int(text) if text.isdecimal() else text


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in _split(text)]
    except ValueError:
        raise ValueError(
            f"--explain {text!r}: want indices of images separated by commas, such as 3,14"
        ) from None
