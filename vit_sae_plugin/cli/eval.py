"""``vit-sae eval``: the measures of a saved SAE, on screen and as CSV and JSON.

Suites: how well it reconstructs, and what splicing it in does to its model; the Matryoshka paper's
measures of the rows that it reads; which latents decide a class (masking); whether latents mean
something (concepts); which of them another SAE has too (stability); which mislead (bias).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.bias_suite import bias_suite, check_bias_options
from vit_sae_plugin.cli.concept_suites import (
    check_stability_options,
    concept_suite_of,
    named_atlas,
    stability_suite,
)
from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.saved_sae import folder_beside, load_model, load_sae

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.attached_sae import AttachedSAE
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.evaluation import EvaluationReport
    from vit_sae_plugin.hooked_vit import HookedViT

_ONLY_OF_SUITE = {
    "msae": ("captions", "training_captions"),
    "masking": ("ranking_images", "ks", "allow_same_images", "published_average"),
    "concepts": ("control", "encoder", "encoder_embeddings", "groups"),
    "stability": ("other", "match_by"),
    "bias": (
        *("attribute", "fit_images", "find_images"),
        *("reference_images", "elsewhere_images", "refit"),
    ),
}
_WITH_PROBE = ("msae", "masking")
_WITH_ATLAS = ("masking", "concepts", "stability", "bias")
_ONLY_IMAGES = ("images", "model", "pretrained", "n_images", "n_workers", "templates")
_ON_CACHE = ("splice", "reconstruction", "msae")
_NOT_ON_CACHE = ("captions", "probe_images", "save_latents", "n_workers")
_BATCH_SIZE_IMAGES = {
    "splice": 64,
    "reconstruction": 64,
    "msae": 64,
    "masking": 8,
    "concepts": 64,
    "stability": 32,
    "bias": 32,
}


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables and save them."""
    from vit_sae_plugin.activations.cache.cache_names import is_cache_text

    _check(args)
    name = args.suite if args.suite in _WITH_ATLAS else "evaluation"
    folder = Path(args.output_path or folder_beside(args.sae, name))
    check_output_folder(folder)
    if args.save_latents is not None:
        check_output_folder(args.save_latents, "--save-latents")
    device = chosen_device(args.device)
    sae = load_sae(args.sae, device)
    evaluate = _on_images if args.embeddings is None else _on_embeddings
    if is_cache_text(args.images):
        evaluate = _on_cache
    if args.suite == "stability":
        evaluate = stability_suite
    report = evaluate(sae, args, device, folder)
    print(report)
    print(f"\nSaved as CSV and JSON in {folder}")
    if args.save_latents is not None:
        print(f"Latents saved; read them by load_latents({args.save_latents!r})")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise where options don't go together."""
    from vit_sae_plugin.activations.cache.cache_names import is_cache_text

    if args.suite is None:
        args.suite = "splice" if args.embeddings is None else "msae"
    if args.batch_size_images is None:
        args.batch_size_images = _BATCH_SIZE_IMAGES[args.suite]
    for suite, names in _ONLY_OF_SUITE.items():
        for name in names:
            if getattr(args, name) and args.suite != suite:
                raise ValueError(f"{_flag(name)} goes with --suite {suite}")
            if getattr(args, name) and args.embeddings is not None:
                raise ValueError(f"{_flag(name)} doesn't go with --embeddings, but with --images")
    if args.probe_images and (args.suite not in _WITH_PROBE or args.embeddings is not None):
        raise ValueError(
            f"--probe-images goes with --images and --suite {' or '.join(_WITH_PROBE)}"
        )
    if args.atlas and args.suite not in _WITH_ATLAS:
        raise ValueError(f"--atlas goes with --suite {' or '.join(_WITH_ATLAS)}")
    if args.suite == "stability":
        check_stability_options(args)
        return
    if args.embeddings is not None:
        for name in _ONLY_IMAGES:
            if getattr(args, name):
                raise ValueError(f"{_flag(name)} doesn't go with --embeddings, but with --images")
        if args.suite != "msae":
            raise ValueError(
                f"--suite {args.suite} needs a model and --images; of --embeddings there is "
                "--suite msae"
            )
    elif args.images is None:
        raise ValueError("want --images SOURCE or --embeddings FILE to measure the SAE on")
    if args.suite == "masking" and (args.ranking_images is None) == (args.atlas is None):
        raise ValueError(
            "--suite masking ranks latents; want one of --ranking-images SOURCE and --atlas FOLDER"
        )
    if args.suite == "bias":
        check_bias_options(args)
    if is_cache_text(args.images):
        _check_on_cache(args)
    if args.encoder is not None and args.encoder_embeddings is not None:
        raise ValueError("give either --encoder or --encoder-embeddings, not both")
    if args.save_latents is not None and Path(args.save_latents).exists():
        raise ValueError(f"--save-latents {args.save_latents}: that exists; choose another folder")


def _check_on_cache(args: argparse.Namespace) -> None:
    if args.suite not in _ON_CACHE:
        raise ValueError(
            f"--suite {args.suite} needs pictures, and --images {args.images} holds activations; "
            f"want the images, or one of --suite {', '.join(_ON_CACHE)}"
        )
    for name in _NOT_ON_CACHE:
        if getattr(args, name):
            raise ValueError(f"{_flag(name)} doesn't go with --images {args.images}, but images")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _on_embeddings(
    sae: SAE[Any], args: argparse.Namespace, device: str, folder: Path
) -> EvaluationReport:
    """The Matryoshka paper's measures on the rows of a file; no model is needed."""
    from vit_sae_plugin.activations.embedding_rows import load_embedding_rows
    from vit_sae_plugin.evaluation import evaluate_embeddings, save_embedding_latents

    rows = load_embedding_rows(args.embeddings, d_in=sae.cfg.d_in)
    report = evaluate_embeddings(sae, rows)
    report.settings["embeddings"] = rows.name
    report.save(folder)
    if args.save_latents is not None:
        save_embedding_latents(sae, rows, args.save_latents)
    return report


def _on_cache(
    sae: SAE[Any], args: argparse.Namespace, device: str, folder: Path
) -> EvaluationReport:
    """What rows at the SAE's hook suffice for; splicing runs the blocks above it."""
    from vit_sae_plugin.activations.cache import ActivationCache
    from vit_sae_plugin.activations.cache.cache_names import open_cache
    from vit_sae_plugin.attached_sae import CachedSAE
    from vit_sae_plugin.evaluation import evaluate_embeddings, evaluate_sae, image_rows

    cache = open_cache(args.images)
    if not isinstance(cache, ActivationCache):
        raise ValueError(f"--images {args.images} is no cache; want cache:PATH")
    walk = {
        "batch_size_images": args.batch_size_images,
        "n_images": args.n_images,
        "progress": True,
    }
    if args.suite == "msae":
        report = evaluate_embeddings(
            sae, {"image": image_rows(CachedSAE(cache, sae), None, **walk)}
        )
    else:
        splice = args.suite == "splice"
        model = load_model(sae, args, device) if splice else None
        report = evaluate_sae(model, sae, cache, templates=args.templates, splice=splice, **walk)
    report.save(folder)
    return report


def _on_images(
    sae: SAE[Any], args: argparse.Namespace, device: str, folder: Path
) -> EvaluationReport:
    """The measures of PatchSAE, or the Matryoshka paper's on what the SAE reads of images."""
    from vit_sae_plugin.attached_sae import AttachedSAE
    from vit_sae_plugin.datasets import open_images
    from vit_sae_plugin.evaluation import evaluate_sae, save_latents

    images = open_images(args.images)
    model = load_model(sae, args, device)
    walk = {
        "batch_size_images": args.batch_size_images,
        "n_images": args.n_images,
        "n_workers": args.n_workers,
        "progress": True,
    }
    if args.suite == "msae":
        report = _msae_suite(AttachedSAE(model, sae), images, args, walk)
    elif args.suite == "masking":
        report = _masking_suite(
            model, sae, images, args, folder, walk | {"templates": args.templates}
        )
    elif args.suite == "concepts":
        report = concept_suite_of(model, sae, images, args, device, walk)
    elif args.suite == "bias":
        report = bias_suite(model, sae, images, args, folder, named_atlas(args, sae))
    else:
        splice = args.suite == "splice"
        report = evaluate_sae(model, sae, images, templates=args.templates, splice=splice, **walk)
    report.save(folder)
    if args.save_latents is not None:
        save_latents(model, sae, images, args.save_latents, **walk)
    return report


def _msae_suite(
    attached: AttachedSAE, images: ImageSource, args: argparse.Namespace, walk: dict[str, Any]
) -> EvaluationReport:
    """The Matryoshka paper's measures on what the SAE reads, and on captions if there are any."""
    from vit_sae_plugin.activations import EmbeddingStatistics, embed_texts
    from vit_sae_plugin.datasets import open_images
    from vit_sae_plugin.evaluation import (
        evaluate_embeddings,
        fit_linear_probe,
        image_rows,
        labelled_rows,
    )

    model, metadata = attached.model, attached.sae.cfg.metadata
    rows: dict[str, Any] = {"image": image_rows(attached, images, **walk)}
    statistics = None
    if args.captions is not None:
        if metadata.hook_name != "hook_image_embed":
            raise ValueError(
                f"--captions: this SAE reads {metadata.hook_name}, and captions have no such "
                "activations; that goes with an SAE of hook_image_embed"
            )
        rows["text"] = embed_texts(model, _lines(args.captions))
        if metadata.input_statistics is not None:
            if args.training_captions is None:
                raise ValueError(
                    "this SAE reads centred and scaled rows: --training-captions FILE must give "
                    "the captions whose mean and scale are those of text"
                )
            training_rows = embed_texts(model, _lines(args.training_captions))
            statistics = EmbeddingStatistics.from_rows(training_rows.batches(), "text")
    probe = None
    if args.probe_images is not None:
        probe_images = open_images(args.probe_images)
        probe = fit_linear_probe(
            *labelled_rows(attached, probe_images, **walk | {"n_images": None})
        )
    return evaluate_embeddings(attached.sae, rows, statistics=statistics, probe=probe)


def _masking_suite(
    model: HookedViT,
    sae: SAE[Any],
    images: ImageSource,
    args: argparse.Namespace,
    folder: Path,
    settings: dict[str, Any],
) -> EvaluationReport:
    """Which latents decide a class; an interrupted study goes on from what is in the folder."""
    from vit_sae_plugin.analysis import LatentAtlas
    from vit_sae_plugin.atomic_files import write_file_atomically
    from vit_sae_plugin.evaluation.classifier_heads import linear_probe_head
    from vit_sae_plugin.evaluation.masking import KS
    from vit_sae_plugin.evaluation.masking_study import masking_report, masking_study
    from vit_sae_plugin.report.masking_plot import plot_masking

    ranking = args.ranking_images if args.atlas is None else LatentAtlas.load(args.atlas)
    head = None
    if args.probe_images is not None:
        head = linear_probe_head(model, args.probe_images, images, n_workers=args.n_workers)
    result = masking_study(
        model,
        sae,
        images,
        ranking=ranking,
        ks=KS if args.ks is None else _numbers(args.ks),
        renormalize_average=not args.published_average,
        head=head,
        allow_same_images=args.allow_same_images,
        folder=folder,
        **settings,
    )
    figure = plot_masking(result.overall())
    write_file_atomically(folder / "masking.png", lambda path: figure.savefig(path, dpi=160))
    return masking_report(result)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--ks is {text!r}; want numbers of latents such as 1,5,10") from None


def _lines(path: str) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip()]
