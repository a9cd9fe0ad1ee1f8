"""``vit-sae card``: measure an SAE beside a random control, and write its card."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.saved_sae import load_model, load_sae

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.report.card import CardFigures

_CALIBRATION_ROWS = 8192


def run(args: argparse.Namespace) -> int:
    """Measure if there are images, write the card, and upload it if that is asked for."""
    from vit_sae_plugin.report.card import write_card

    folder, device = Path(args.sae), chosen_device(args.device)
    sae = load_sae(args.sae, device)
    if not (folder / "cfg.json").is_file():
        folder = folder / "sae"  # a run's own folder
    figures = None
    if args.images is not None:
        figures = _figures(folder, sae, args, device)
    elif not (args.upload and (folder / "README.md").is_file()):
        print("no --images, so nothing is measured: the card says so")
    if figures is not None or not (folder / "README.md").is_file():
        print(f"The card is in {write_card(folder, sae, figures)}")
    if args.upload is not None:
        from vit_sae_plugin.pretrained import share_sae

        print(share_sae(folder, args.upload, args.sae_id or folder.resolve().name))
    return 0


def _figures(folder: Path, sae: SAE[Any], args: argparse.Namespace, device: str) -> CardFigures:
    from vit_sae_plugin.datasets import open_images
    from vit_sae_plugin.evaluation import evaluate_sae
    from vit_sae_plugin.report.card import CardFigures

    images = open_images(args.images)
    model = load_model(sae, args, device)
    settings: dict[str, Any] = {
        "batch_size_images": args.batch_size_images,
        "n_images": args.n_images,
        "n_workers": args.n_workers,
        "progress": True,
    }
    measured = evaluate_sae(model, sae, images, **settings)
    k = max(1, round(measured.tables["reconstruction"].loc["all", "l0"]))
    control = _control(model, sae, images, min(k, sae.cfg.d_sae), args)
    return CardFigures(
        measured=measured,
        control=evaluate_sae(model, control, images, **settings),
        control_k=control.cfg.k,
        command=_command(args),
        picture_rule=_draw(folder, model, sae, images, args),
    )


def _control(
    model: HookedViT, sae: SAE[Any], images: ImageSource, k: int, args: argparse.Namespace
) -> Any:
    import torch

    from vit_sae_plugin.attached_sae import AttachedSAE
    from vit_sae_plugin.evaluation.random_control import random_directions_sae

    attached = AttachedSAE(model, sae)
    rows: list[torch.Tensor] = []
    walk = attached.walk(images, batch_size_images=args.batch_size_images, shuffle=True)
    for batch in walk:
        acts = attached.activations(batch.pixels).flatten(0, 1)
        rows.append(attached.rows.standardize(acts).float())
        if sum(len(part) for part in rows) >= _CALIBRATION_ROWS:
            break
    return random_directions_sae(sae, torch.cat(rows)[:_CALIBRATION_ROWS], k)


def _draw(
    folder: Path,
    model: HookedViT,
    sae: SAE[Any],
    images: ImageSource,
    args: argparse.Namespace,
) -> str | None:
    """Draw the picture; returns what it shows, or None where there is nothing to show."""
    if args.no_picture:
        return None
    from vit_sae_plugin.analysis import LatentAtlas, analyze
    from vit_sae_plugin.report.card_picture import draw_card_picture

    if args.atlas is not None:
        atlas = LatentAtlas.load(args.atlas)
    else:
        atlas = analyze(
            model,
            sae,
            images,
            batch_size_images=args.batch_size_images,
            n_workers=args.n_workers,
        )
    return draw_card_picture(model, sae, atlas, images, folder)


def _command(args: argparse.Namespace) -> str:
    """What to type to measure it again."""
    words = ["vit-sae", "card", "FOLDER", "--images", args.images]
    for name in ("model", "pretrained", "n_images"):
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
