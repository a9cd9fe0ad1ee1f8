"""``vit-sae eval --suite concepts`` and ``stability``: whether latents mean something, and last."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.saved_sae import load_model, load_sae, weights_flag

if TYPE_CHECKING:
    import pandas as pd
    from sae_lens import SAE

    from vit_sae_plugin.analysis import LatentAtlas
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.evaluation import EvaluationReport
    from vit_sae_plugin.hooked_vit import HookedViT


def check_stability_options(args: argparse.Namespace) -> None:
    """Raise where options are missing or don't go together."""
    if args.other is None:
        raise ValueError("--suite stability wants --other SAE_FOLDER, the SAE to match with")
    if args.embeddings is not None or args.save_latents is not None:
        raise ValueError("--suite stability goes without --embeddings and --save-latents")
    if (args.match_by == "activations") != (args.images is not None):
        raise ValueError(
            "--match-by activations wants --images SOURCE, and --match-by decoder none"
        )


def concept_suite_of(
    model: HookedViT,
    sae: SAE[Any],
    images: ImageSource,
    args: argparse.Namespace,
    device: str,
    settings: dict[str, Any],
) -> EvaluationReport:
    """Whether latents mean something; of at most 5,000 images unless told otherwise."""
    from vit_sae_plugin.activations.embedding_rows import load_embedding_rows
    from vit_sae_plugin.evaluation import concept_suite
    from vit_sae_plugin.evaluation.image_concepts import read_groups
    from vit_sae_plugin.hooked_vit import HookedViT

    atlas = named_atlas(args, sae)
    controls = {}
    for given in args.control or ():
        name, _, folder = given.partition("=")
        if not (name and folder):
            raise ValueError(f"--control is {given!r}; want NAME=FOLDER, a saved SAE's folder")
        if name in controls:
            raise ValueError(f"--control names {name!r} twice; want another name for each")
        controls[name] = load_sae(folder, device)
    encoder: Any = None
    if args.encoder is not None:
        name, tag = args.encoder, None
        if ":" in name and not name.startswith(("hf:", "timm:")):
            name, tag = name.split(":", 1)
        encoder = HookedViT.from_pretrained(name, device=device, **weights_flag(tag))
    elif args.encoder_embeddings is not None:
        encoder = load_embedding_rows(args.encoder_embeddings)
    if settings["n_images"] is None:
        del settings["n_images"]
    report = concept_suite(
        model,
        sae,
        images,
        controls=controls,
        encoder=encoder,
        groups=None if args.groups is None else read_groups(args.groups),
        **settings,
    )
    kept = ["monosemanticity", "spatial_coherence"]
    _keep(atlas, report.latents[[name for name in kept if name in report.latents]])
    return report


def stability_suite(
    sae: SAE[Any], args: argparse.Namespace, device: str, folder: Path
) -> EvaluationReport:
    """Which latents another SAE has too."""
    from vit_sae_plugin.activations import ActivationSource
    from vit_sae_plugin.concepts import match_saes

    atlas = named_atlas(args, sae)
    other = load_sae(args.other, device)
    settings: dict[str, Any] = {}
    if args.match_by == "activations":
        model = load_model(sae, args, device)
        source_of_other = ActivationSource.from_metadata(other.cfg.metadata)
        same = other.cfg.metadata.model_name == sae.cfg.metadata.model_name
        settings = {
            "model": model,
            "other_model": model if same else source_of_other.load_model(device),
            "images": args.images,
            "n_images": args.n_images,
            "batch_size_images": args.batch_size_images,
            "n_workers": args.n_workers,
            "progress": True,
        }
    found = match_saes(sae, other, args.match_by or "decoder", **settings)
    _keep(atlas, found.latents)
    report = found.report()
    report.save(folder)
    return report


def named_atlas(args: argparse.Namespace, sae: SAE[Any]) -> LatentAtlas | None:
    """The atlas that is to keep what is found of each latent, checked before anything is."""
    if args.atlas is None:
        return None
    from vit_sae_plugin.analysis import LatentAtlas
    from vit_sae_plugin.analysis.atlas.same_sae import check_same_sae

    atlas = LatentAtlas.load(args.atlas)
    check_same_sae(atlas, sae)
    return atlas


def _keep(atlas: LatentAtlas | None, columns: pd.DataFrame) -> None:
    if atlas is not None:
        atlas.add_columns(columns)
        print(f"Kept beside the atlas in {atlas.folder}: {', '.join(columns)}\n")
