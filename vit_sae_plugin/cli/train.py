"""``vit-sae train``: from settings on the command line to a trained SAE in a folder."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, TextIO

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.sweep import run_sweep
from vit_sae_plugin.cli.train_flags import changes_of, resumed_with

if TYPE_CHECKING:
    from vit_sae_plugin.training import ViTSAETrainingRunner

_FIRST_ARCHITECTURE = "patchsae"


def run(args: argparse.Namespace) -> int:
    """Train, and say where the SAE is."""
    from vit_sae_plugin.training import (
        RankLostError,
        TrainingInterruptedError,
        load_preset,
        preset_names,
        preset_summary,
    )
    from vit_sae_plugin.training.sweep import is_sweep_folder

    if args.preset == "list":
        for name in preset_names():
            print(f"{name}\n    {preset_summary(name)}")
        return 0
    if args.sweep is not None or (args.resume is not None and is_sweep_folder(args.resume)):
        return run_sweep(args)
    if args.resume is not None:
        runner = _resumed_runner(args)
    else:
        settings = load_preset(args.preset) if args.preset else _settings_of_file(args.config)
        runner = _new_runner(_with_flags(settings, args), args)
    cfg = runner.cfg
    _say(
        runner,
        f"{cfg.sae.architecture()} with {cfg.sae.d_sae:,} latents on {_rows_in_words(runner)} "
        f"(width {cfg.sae.d_in}), {cfg.training_tokens:,} tokens in "
        f"{cfg.total_training_steps:,} steps, on {_place(runner)}",
        file=sys.stderr,
    )
    try:
        runner.run()
    except TrainingInterruptedError as stopped:
        _say(runner, f"vit-sae train: {stopped}", file=sys.stderr)
        return 130
    except RankLostError as lost:
        if not runner.is_first and not str(lost).startswith("rank 0 "):
            return 1  # the first of the processes says why
        raise
    _say(runner, f"The SAE is in {cfg.output_path}/sae")
    _say(runner, f"Measure it:  vit-sae eval {cfg.output_path}/sae --images SOURCE")
    look = f"vit-sae analyze {cfg.output_path}/sae --images SOURCE --report report/"
    _say(runner, f"Look at it:  {look}")
    return 0


def _say(runner: ViTSAETrainingRunner, line: str, file: TextIO | None = None) -> None:
    """Print a line once, however many processes train together."""
    if runner.is_first:
        print(line, file=file, flush=True)


def _place(runner: ViTSAETrainingRunner) -> str:
    if runner.ranks is None:
        return runner.cfg.device
    device = runner.cfg.device.partition(":")[0]
    return f"{runner.ranks.n_ranks} processes ({device})"


def _rows_in_words(runner: ViTSAETrainingRunner) -> str:
    from vit_sae_plugin.activations import ActivationSource

    if runner.cfg.embeddings_path is not None:
        return f"the rows of {runner.cfg.embeddings_path}"
    source = ActivationSource.from_metadata(runner.sae.cfg.metadata)
    return f"{source.hook_name} of {source.describe_model()}"


def _resumed_runner(args: argparse.Namespace) -> ViTSAETrainingRunner:
    """The runner of an interrupted run, with what may differ from its settings."""
    from vit_sae_plugin.training import ViTSAETrainingRunner

    images, model, changes = resumed_with(args)
    return ViTSAETrainingRunner.resume(
        args.resume, images, model, override_eval_images=args.eval_images, **changes
    )


def _settings_of_file(path: str | None) -> dict[str, Any]:
    from vit_sae_plugin.training import read_settings

    if path is not None:
        return read_settings(path)
    return {"sae": {"architecture": _FIRST_ARCHITECTURE}}


def _with_flags(settings: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The settings, with those of the command line in place of their own."""
    from vit_sae_plugin.datasets import check_source_from_file
    from vit_sae_plugin.training import ViTSAERunnerConfig, check_settings
    from vit_sae_plugin.training.setting_changes import with_changes

    check_settings(ViTSAERunnerConfig, settings)
    typed = args.images is not None or any(part.startswith("dataset_path=") for part in args.set)
    if not typed and settings.get("dataset_path"):
        check_source_from_file(settings["dataset_path"])
    settings = with_changes(settings, changes_of(args))
    check_settings(ViTSAERunnerConfig, settings)
    return settings


def _new_runner(settings: dict[str, Any], args: argparse.Namespace) -> ViTSAETrainingRunner:
    """Load what the settings name, work out what depends on it, and make the runner."""
    from vit_sae_plugin.training import ViTSAETrainingRunner
    from vit_sae_plugin.training.run_input import RunInput

    if settings.get("output_path") is not None:
        check_output_folder(settings["output_path"])
    settings["device"] = chosen_device(args.device or settings.get("device"))
    given = RunInput.open(settings, from_file=False)  # images of a file have been checked
    return ViTSAETrainingRunner(
        given.config(settings),
        override_images=given.images if given.cache is None else given.cache,
        override_model=given.model,
        override_eval_images=args.eval_images,  # typed, so it may be a command
    )
