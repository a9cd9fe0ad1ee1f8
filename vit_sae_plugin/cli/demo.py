"""``vit-sae demo``: the main job once, offline: train, evaluate, and show what latents mean."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder

if TYPE_CHECKING:
    import pandas as pd

    from vit_sae_plugin.analysis import LatentAtlas
    from vit_sae_plugin.evaluation import EvaluationReport
    from vit_sae_plugin.report.demo_latents import DemoLatents
    from vit_sae_plugin.report.demo_page import LatentCard, LatentGroup

PRESET = "patchsae-shapes"
HELD_OUT = "shapes:test?n_images=2000&n_objects=1"
N_EVALUATED = 1000
N_LATENTS_OF_EACH = 8
N_IMAGES_SHOWN = 5
N_EXPLAINED = 1000


def run(args: argparse.Namespace) -> int:
    """Train, evaluate and analyse a PatchSAE on shape scenes; write a page and the report."""
    from vit_sae_plugin.analysis import analyze, reference_pictures
    from vit_sae_plugin.datasets import open_images
    from vit_sae_plugin.evaluation import evaluate_sae
    from vit_sae_plugin.report import write_report
    from vit_sae_plugin.report.demo_latents import RULE, demo_latents
    from vit_sae_plugin.report.demo_page import write_demo_page
    from vit_sae_plugin.training import METRICS_FILE, read_metrics

    folder = Path(args.output_path)
    check_output_folder(folder)
    _clear(folder)
    device = chosen_device(args.device)
    started = time.perf_counter()
    _say(f"1/3  Training a PatchSAE on drawn scenes (on {device})")
    runner = _runner(folder, device, args)
    runner.run()
    sae, model = _trained(folder, device), runner.model
    training_seconds = time.perf_counter() - started

    _say("2/3  Evaluating it on scenes it has not seen")
    held_out = open_images(HELD_OUT)
    report = evaluate_sae(model, sae, held_out, n_images=N_EVALUATED, progress=True)
    report.save(folder / "evaluation")

    _say("3/3  Looking at what its latents respond to")
    # by mean rather than by count, the rule saved with the SAE: means are hardly ever equal
    atlas = analyze(
        model,
        sae,
        held_out,
        aggregations=("mean", "count", "max"),
        folder=folder / "atlas",
        batch_size_images=64,
    )
    chosen = demo_latents(atlas, N_LATENTS_OF_EACH)
    pictures = reference_pictures(model, sae, atlas, held_out, chosen.all, n_images=N_IMAGES_SHOWN)
    write_report(
        model,
        sae,
        atlas,
        held_out,
        folder / "report",
        n_explained_references=N_EXPLAINED,
        logit="predicted",
    )
    page = write_demo_page(
        folder / "index.html",
        title="A PatchSAE on drawn scenes",
        summary=_summary(sae, report, atlas, chosen, training_seconds),
        curves=read_metrics(folder / "run" / METRICS_FILE),
        reconstruction=_readable(report.reconstruction),
        splicing=report.splicing,
        groups=_groups(atlas, chosen, pictures),
        rule=RULE,
        report="report",
        n_in_report=int((~atlas.latents["is_dead"]).sum()),
        commands=_next_commands(folder),
    )
    _say(f"Done in {time.perf_counter() - started:.0f} s.")
    print(report)
    print(f"\nOpen this page in a browser:  {page.resolve()}")
    return 0


def _clear(folder: Path) -> None:
    """Make room for a new demo, and delete nothing that isn't an earlier one's."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "run" / "config.yaml").is_file():
            raise FileExistsError(
                f"{folder} is not empty and holds no earlier demo; choose another --output-path"
            )
        for name in ("run", "evaluation", "atlas", "report"):
            shutil.rmtree(folder / name, ignore_errors=True)


def _runner(folder: Path, device: str, args: argparse.Namespace) -> Any:
    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.training import (
        ViTSAERunnerConfig,
        ViTSAETrainingRunner,
        complete_settings,
        load_preset,
    )

    settings = load_preset(PRESET) | {
        "device": device,
        "seed": args.seed,
        "output_path": str(folder / "run"),
    }
    if args.training_tokens is not None:
        settings["training_tokens"] = args.training_tokens
        n_steps = args.training_tokens // settings["train_batch_size_tokens"]
        for name in ("lr_warm_up_steps", "lr_decay_steps"):
            settings[name] = min(settings[name], n_steps // 4)
    model = HookedViT.from_pretrained(settings["model_name"], device=device)
    d_in = model.hook_width(settings["hook_name"])
    cfg = ViTSAERunnerConfig.from_dict(
        complete_settings(settings, d_in=d_in, n_rows_per_epoch=None)
    )
    return ViTSAETrainingRunner(cfg, override_model=model)


def _trained(folder: Path, device: str) -> Any:
    """The SAE as a user would load it, rather than the object that was trained."""
    from sae_lens import SAE

    return SAE.load_from_disk(folder / "run" / "sae", device=device)


def _summary(
    sae: Any,
    report: EvaluationReport,
    atlas: LatentAtlas,
    chosen: DemoLatents,
    training_seconds: float,
) -> list[str]:
    row = report.reconstruction.loc["all"]
    zero_shot = report.splicing["zero_shot_accuracy"]
    return [
        f"A sparse autoencoder with {sae.cfg.d_sae:,} latents was trained for "
        f"{training_seconds / 60:.1f} minutes on the patch tokens of shapes-clip, a small CLIP "
        f"that ships with vit_sae_plugin, at {sae.cfg.metadata.hook_name}. Each token of an image "
        f"is then written as a sum of few latents: {row['l0']:.1f} on average, which explain "
        f"{row['explained_variance']:.1%} of the variance. {row['dead_share']:.1%} of the latents "
        "never fire on held-out scenes.",
        f"With the reconstruction in place of its own activations the model still names "
        f"{zero_shot['spliced']:.1%} of the scenes by shape and colour, one of 64 classes "
        f"({zero_shot['original']:.1%} without the SAE, {zero_shot['zeros']:.1%} with zeros).",
        "Nobody told the autoencoder what a circle or a colour is; where the images that activate "
        "a latent most show one kind of thing, lit up in the patches where it is, the latent has "
        f"found that concept by itself. Of {chosen.n_eligible:,} latents that are neither rare nor "
        f"dense, {chosen.n_of_one_class:,} have one class (a shape in a colour) on at least 8 of "
        f"their 10 strongest images, and {chosen.n_of_no_class:,} have none on more than 3.",
    ]


def _readable(reconstruction: pd.DataFrame) -> pd.DataFrame:
    """The columns a first look needs; the files next to the page hold them all."""
    columns = ["n_tokens", "l0", "l1", "mse", "explained_variance", "explained_variance_per_token"]
    columns += ["explained_variance_uncentred", "cosine_similarity", "dead_share", "dense_share"]
    return reconstruction[columns]


def _groups(
    atlas: LatentAtlas, chosen: DemoLatents, pictures: dict[int, list[Any]]
) -> list[LatentGroup]:
    from vit_sae_plugin.report.demo_page import LatentGroup

    wanted = [
        ("The purest", "The lowest label entropies: what the autoencoder does well.", "purest"),
        ("In the middle", "Half of the latents are purer than these, half less so.", "middling"),
        (
            "The least pure",
            "The highest label entropies: no class and hardly a colour or shape is common to "
            "their images. Some respond to a background, an edge or a place; some to nothing "
            "that has a name.",
            "least_pure",
        ),
    ]
    return [
        LatentGroup(title, note, [_card(atlas, i, pictures[i]) for i in getattr(chosen, name)])
        for title, note, name in wanted
    ]


def _card(atlas: LatentAtlas, latent: int, pictures: list[Any]) -> LatentCard:
    from vit_sae_plugin.report.demo_latents import in_common
    from vit_sae_plugin.report.demo_page import LatentCard

    row = atlas.latents.loc[latent]
    classes = atlas.reference_images(latent)["class_name"].tolist()
    what, n_carrying = in_common(classes)
    return LatentCard(
        latent=latent,
        caption=f"{what} · {n_carrying} of {len(classes)} images",
        activated_frequency=float(row["frequency"]),
        label_entropy=float(row["label_entropy"]),
        images=pictures,
    )


def _next_commands(folder: Path) -> list[str]:
    sae = folder / "run" / "sae"
    return [
        f"vit-sae analyze {sae} --images 'shapes:test?n_images=2000' "
        f"--report {folder / 'report-of-up-to-three-objects'}",
        "vit-sae train --images photos/ --model ViT-B-16 --pretrained openai "
        "--output-path runs/photos",
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
