"""``vit-sae eval``: the measures of a saved SAE, on screen and as CSV and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.saved_sae import folder_beside, load_model, load_sae

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.evaluation import EvaluationReport, ImageActivations
    from vit_sae_plugin.hooked_vit import HookedViT

_ONLY_MSAE = ("probe_images", "captions", "training_captions")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables and save them."""
    from vit_sae_plugin.datasets import open_images
    from vit_sae_plugin.evaluation import evaluate_sae, save_latents

    misplaced = [name for name in _ONLY_MSAE if getattr(args, name) and args.suite != "msae"]
    if misplaced:
        raise ValueError(f"--{misplaced[0].replace('_', '-')} goes with --suite msae")
    if args.save_latents is not None and Path(args.save_latents).exists():
        raise ValueError(f"--save-latents {args.save_latents}: that exists; choose another folder")
    folder = Path(args.output_path or folder_beside(args.sae, "evaluation"))
    check_output_folder(folder)
    if args.save_latents is not None:
        check_output_folder(args.save_latents, "--save-latents")
    device = chosen_device(args.device)
    sae = load_sae(args.sae, device)
    images = open_images(args.images)
    model = load_model(sae, args, device)
    if args.suite == "msae":
        report = _msae_suite(model, sae, images, args)
    else:
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
    report.save(folder)
    print(f"\nSaved as CSV and JSON in {folder}")
    if args.save_latents is not None:
        save_latents(
            model,
            sae,
            images,
            args.save_latents,
            batch_size_images=args.batch_size_images,
            n_images=args.n_images,
            n_workers=args.n_workers,
            progress=True,
        )
        print(f"Latents saved; read them by load_latents({args.save_latents!r})")
    return 0


def _msae_suite(
    model: HookedViT, sae: SAE[Any], images: ImageSource, args: argparse.Namespace
) -> EvaluationReport:
    """The Matryoshka paper's measures on what the SAE reads, and on captions if there are any."""
    from vit_sae_plugin.activations import EmbeddingStatistics, embed_texts
    from vit_sae_plugin.datasets import open_images
    from vit_sae_plugin.evaluation import evaluate_embeddings, fit_linear_probe

    rows: dict[str, Any] = {"image": _activations(model, sae, images, args, args.n_images).rows()}
    statistics = None
    if args.captions is not None:
        hook_name = sae.cfg.metadata.hook_name
        if hook_name != "hook_image_embed":
            raise ValueError(
                f"--captions: this SAE reads {hook_name}, and captions have no such activations; "
                "that goes with an SAE of hook_image_embed"
            )
        rows["text"] = embed_texts(model, _lines(args.captions))
        if sae.cfg.metadata.input_statistics is not None:
            if args.training_captions is None:
                raise ValueError(
                    "this SAE reads centred and scaled rows: --training-captions FILE must give "
                    "the captions whose mean and scale are those of text"
                )
            training_rows = embed_texts(model, _lines(args.training_captions))
            statistics = EmbeddingStatistics.from_rows(training_rows.batches(), "text")
    probe = None
    if args.probe_images is not None:
        labelled = _activations(model, sae, open_images(args.probe_images), args, None)
        probe = fit_linear_probe(*labelled.labelled_rows())
    return evaluate_embeddings(sae, rows, statistics=statistics, probe=probe)


def _activations(
    model: HookedViT,
    sae: SAE[Any],
    images: ImageSource,
    args: argparse.Namespace,
    n_images: int | None,
) -> ImageActivations:
    """What the SAE reads of the images."""
    from vit_sae_plugin.activations import ActivationSource
    from vit_sae_plugin.evaluation import ImageActivations

    return ImageActivations(
        model,
        ActivationSource.from_metadata(sae.cfg.metadata),
        images,
        batch_size_images=args.batch_size_images,
        n_images=n_images,
        n_workers=args.n_workers,
        progress=True,
    )


def _lines(path: str) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip()]
