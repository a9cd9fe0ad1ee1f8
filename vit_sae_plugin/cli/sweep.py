"""``vit-sae train --sweep``: several SAEs from one stream of rows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.train_flags import changes_of, resumed_with

if TYPE_CHECKING:
    from vit_sae_plugin.training import ViTSAESweepRunner


def run_sweep(args: argparse.Namespace) -> int:
    """Train all members of a sweep, and set them side by side."""
    from vit_sae_plugin.report.sweep_page import write_sweep_page
    from vit_sae_plugin.training import DivergedError, SweepResults, TrainingInterruptedError

    runner = _resumed(args) if args.resume is not None else _new(args)
    cfg = next(iter(runner.members.values()))
    hooks = dict.fromkeys(member.hook_name for member in runner.members.values())
    print(
        f"{len(runner.members)} SAEs on one stream of rows ({', '.join(hooks)} of "
        f"{cfg.model_name}), batches of {cfg.train_batch_size_tokens:,}",
        file=sys.stderr,
    )
    failure = None
    try:
        results = runner.run()
    except TrainingInterruptedError as stopped:
        print(f"vit-sae train: {stopped}", file=sys.stderr)
        return 130
    except DivergedError as error:
        failure, results = error, SweepResults.load(runner.folder)
    page = write_sweep_page(results)
    if failure is not None:
        raise failure
    print(results.short_table().to_string(float_format="%.4g", na_rep="–"))
    for name, why in runner.diverged.items():
        print(f"{name} was stopped: {why}", file=sys.stderr)
    print(f"\nThe SAEs are in {runner.folder}/NAME/sae, the table in {runner.folder}/sweep.csv")
    print(f"A page that sets them side by side: {page}")
    print(f"Measure them:  vit-sae frontier {runner.folder}/*/sae --images SOURCE")
    return 0


def _new(args: argparse.Namespace) -> ViTSAESweepRunner:
    from vit_sae_plugin.training import Sweep, ViTSAESweepRunner

    for name in ("preset", "config"):
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name} doesn't go with --sweep; name it in the sweep's file, as '{name}:'"
            )
    changes = changes_of(args)
    if args.device is not None:
        changes["device"] = args.device
    sweep = Sweep.load(args.sweep).change_all(changes)
    sweep = sweep.change_all({"device": chosen_device(sweep.base.get("device"))})
    folder = Path(sweep.base.get("output_path") or "output")
    check_output_folder(folder)
    return ViTSAESweepRunner.from_settings(
        sweep,
        folder,
        args.images or changes.get("dataset_path"),  # typed, so it may be a command
        override_eval_images=args.eval_images,
    )


def _resumed(args: argparse.Namespace) -> ViTSAESweepRunner:
    from vit_sae_plugin.training import ViTSAESweepRunner

    images, model, changes = resumed_with(args)
    return ViTSAESweepRunner.resume(
        args.resume, images, model, override_eval_images=args.eval_images, **changes
    )
