"""``vit-sae train``: from settings on the command line to a trained SAE in a folder."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.saved_sae import weights_flag

if TYPE_CHECKING:
    from vit_sae_plugin.training import ViTSAETrainingRunner

_OWN_FLAGS = (
    "hook_name token_kind training_tokens lr n_workers seed output_path".split()
)  # flags named as the setting they set
_FIRST_ARCHITECTURE = "patchsae"
_FIRST_EXPANSION_FACTOR = 8


def run(args: argparse.Namespace) -> int:
    """Train, and say where the SAE is."""
    from vit_sae_plugin.training import (
        TrainingInterruptedError,
        load_preset,
        preset_names,
        preset_summary,
    )

    if args.preset == "list":
        for name in preset_names():
            print(f"{name}\n    {preset_summary(name)}")
        return 0
    if args.resume is not None:
        runner = _resumed_runner(args)
    else:
        settings = load_preset(args.preset) if args.preset else _settings_of_file(args.config)
        runner = _new_runner(_with_flags(settings, args), args)
    cfg = runner.cfg
    print(
        f"{cfg.sae.architecture()} with {cfg.sae.d_sae:,} latents on {_rows_in_words(runner)} "
        f"(width {cfg.sae.d_in}), {cfg.training_tokens:,} tokens in "
        f"{cfg.total_training_steps:,} steps, on {cfg.device}",
        file=sys.stderr,
    )
    try:
        runner.run()
    except TrainingInterruptedError as stopped:
        print(f"vit-sae train: {stopped}", file=sys.stderr)
        return 130
    print(f"The SAE is in {cfg.output_path}/sae")
    print(f"Measure it:  vit-sae eval {cfg.output_path}/sae --images SOURCE")
    print(f"Look at it:  vit-sae analyze {cfg.output_path}/sae --images SOURCE --report report/")
    return 0


def _rows_in_words(runner: ViTSAETrainingRunner) -> str:
    from vit_sae_plugin.activations import ActivationSource

    if runner.cfg.embeddings_path is not None:
        return f"the rows of {runner.cfg.embeddings_path}"
    source = ActivationSource.from_metadata(runner.sae.cfg.metadata)
    return f"{source.hook_name} of {source.describe_model()}"


def _resumed_runner(args: argparse.Namespace) -> ViTSAETrainingRunner:
    """The runner of an interrupted run, with what may differ from its settings."""
    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.training import ViTSAETrainingRunner

    fixed = "preset config embeddings architecture d_sae expansion_factor hook_name token_kind lr "
    fixed += "seed output_path set"
    given = [name for name in fixed.split() if getattr(args, name) not in (None, [])]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(
            f"--resume goes on with the run's own settings; leave out {flags} (what may be given: "
            "--device, --n-workers, --training-tokens, --eval-images, and --images, --model and "
            "--pretrained if they are the run's own)"
        )
    device = None if args.device is None else chosen_device(args.device)
    changes = {
        "device": device,
        "n_workers": args.n_workers,
        "training_tokens": args.training_tokens,
        "eval_dataset_path": args.eval_images,
        "eval_every_n_steps": None if args.eval_images is None else "auto",
    }
    model = None
    if args.model is not None:
        model = HookedViT.from_pretrained(
            args.model, device=device or "cpu", **weights_flag(args.pretrained)
        )
    return ViTSAETrainingRunner.resume(
        args.resume,
        args.images,  # typed, so it may be a command
        model,
        override_eval_images=args.eval_images,  # typed, so it may be a command
        **{name: value for name, value in changes.items() if value is not None},
    )


def _settings_of_file(path: str | None) -> dict[str, Any]:
    from vit_sae_plugin.training import read_settings

    if path is not None:
        return read_settings(path)
    return {"sae": {"architecture": _FIRST_ARCHITECTURE}}


def _with_flags(settings: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The settings, with those of the command line in place of their own."""
    from vit_sae_plugin.datasets import check_source_from_file
    from vit_sae_plugin.training import ViTSAERunnerConfig, check_settings, parse_setting

    check_settings(ViTSAERunnerConfig, settings)
    typed = args.images is not None or any(part.startswith("dataset_path=") for part in args.set)
    if not typed and settings.get("dataset_path"):
        check_source_from_file(settings["dataset_path"])
    settings["sae"] = sae = settings.get("sae") or {}
    if args.architecture is not None and args.architecture != sae.get("architecture"):
        # The settings of another architecture would only be refused.
        settings["sae"] = sae = {
            name: sae[name] for name in ("d_in", "d_sae", "expansion_factor") if name in sae
        }
        sae["architecture"] = args.architecture
    for name in _OWN_FLAGS:
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    if args.training_tokens is not None:
        settings.pop("training_epochs", None)
    if args.model is not None:
        settings["model_name"] = args.model
        settings["model_from_pretrained_kwargs"] = {}
    if args.pretrained is not None:
        settings["model_from_pretrained_kwargs"] = weights_flag(args.pretrained)
    if args.images is not None:
        settings["dataset_path"] = args.images
        settings.pop("embeddings_path", None)
    if args.embeddings is not None:
        settings["embeddings_path"] = args.embeddings
        settings.pop("dataset_path", None)
    if args.eval_images is not None:
        settings["eval_dataset_path"] = args.eval_images
    for name, other in (("d_sae", "expansion_factor"), ("expansion_factor", "d_sae")):
        if getattr(args, name) is not None:
            sae[name] = getattr(args, name)
            sae.pop(other, None)
    for assignment in args.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment!r} has no '='; want FIELD=VALUE")
        target, _, field = name.rpartition(".")
        if target not in ("", "sae", "logger"):
            raise ValueError(f"--set {name}: want FIELD, sae.FIELD or logger.FIELD")
        (settings.setdefault(target, {}) if target else settings)[field] = parse_setting(value)
    check_settings(ViTSAERunnerConfig, settings)
    return settings


def _new_runner(settings: dict[str, Any], args: argparse.Namespace) -> ViTSAETrainingRunner:
    """Load what the settings name, work out what depends on it, and make the runner."""
    from vit_sae_plugin.activations import load_embedding_rows
    from vit_sae_plugin.activations.cache import open_cache
    from vit_sae_plugin.datasets import open_images
    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.training import (
        ViTSAERunnerConfig,
        ViTSAETrainingRunner,
        complete_settings,
    )

    sae = settings["sae"]
    if sae.get("d_sae") is None and sae.get("expansion_factor") is None:
        sae["expansion_factor"] = _FIRST_EXPANSION_FACTOR
    if settings.get("output_path") is not None:
        check_output_folder(settings["output_path"])
    settings["device"] = chosen_device(args.device or settings.get("device"))
    model: Any = None
    images: Any = None
    n_rows: int | None
    if settings.get("embeddings_path"):
        rows = load_embedding_rows(
            settings["embeddings_path"], non_finite=settings.get("non_finite_rows", "refuse")
        )
        d_in, n_rows = rows.d_in, len(rows)
    elif not settings.get("dataset_path"):
        raise ValueError("there is nothing to train on: give --images or --embeddings")
    elif (cache := open_cache(settings["dataset_path"])) is not None:
        d_in, n_rows = _complete_from_cache(settings, cache), cache.n_rows
        images = cache
    else:
        images = open_images(settings["dataset_path"])
        model = HookedViT.from_recorded(
            settings.get("model_name") or "ViT-B-16",
            settings.get("model_from_pretrained_kwargs") or {},
            device=settings.get("model_device") or settings["device"],
        )
        # As PatchSAE does: the last block's output serves the class token alone.
        default_hook = f"blocks.{max(model.cfg.n_layers - 2, 0)}.hook_resid_post"
        d_in = model.hook_width(settings.setdefault("hook_name", default_hook))
        if settings.get("hook_name_out") and sae.get("d_out") is None:
            sae["d_out"] = model.hook_width(settings["hook_name_out"])
        n_rows = _rows_per_epoch(model, images, settings)
    cfg = ViTSAERunnerConfig.from_dict(
        complete_settings(settings, d_in=d_in, n_rows_per_epoch=n_rows)
    )
    return ViTSAETrainingRunner(
        cfg,
        override_images=images,
        override_model=model,
        override_eval_images=args.eval_images,  # typed, so it may be a command
    )


def _complete_from_cache(settings: dict[str, Any], cache: Any) -> int:
    """Fill in what a cache decides and wasn't given; returns the width of the rows."""
    sae = settings["sae"]
    selection = {name: cache.plan.model[name] for name in ("token_kind", "seqpos_slice")}
    for name, value in selection.items():
        settings.setdefault(name, value)
    if settings.get("hook_name") is None and len(cache.hook_names) > 1:
        raise ValueError(
            f"the cache {cache.path} holds {', '.join(cache.hook_names)}; choose one with "
            "--hook-name"
        )
    hook_name = settings.get("hook_name") or cache.hook_names[0]
    if settings.get("hook_name_out") and sae.get("d_out") is None:
        sae["d_out"] = cache.d_in(settings["hook_name_out"])
    return cache.d_in(hook_name)


def _rows_per_epoch(model: Any, images: Any, settings: dict[str, Any]) -> int | None:

    if images.n_images is None:
        return None
    if settings["hook_name"] == "hook_image_embed":
        return images.n_images
    n_tokens = len(model.cfg.tokens.positions(settings.get("token_kind", "all")))
    return images.n_images * n_tokens
