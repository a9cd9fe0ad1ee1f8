"""``vit-sae adapt``: from labelled images, or an official checkpoint, to an adapted CLIP."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.saved_sae import weights_flag

if TYPE_CHECKING:
    import pandas as pd

    from vit_sae_plugin.adaptation import AdaptationConfig
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT

_FIRST_MODEL = "ViT-B-16"
_OF_TRAINING = "method images shots seed half preset epochs lr set".split()


def run(args: argparse.Namespace) -> int:
    """Adapt, measure before and after if asked to, and say where the model is."""
    from vit_sae_plugin.datasets import open_images
    from vit_sae_plugin.hooked_vit import HookedViT

    config = None if args.checkpoint else _config(args)
    if args.checkpoint is None and args.images is None:
        raise ValueError("there is nothing to learn from: give --images or --checkpoint")
    if args.checkpoint is not None:
        given = [f"--{name}" for name in _OF_TRAINING if getattr(args, name) not in (None, [])]
        if given:
            raise ValueError(f"--checkpoint has its own settings; leave out {', '.join(given)}")
    check_output_folder(args.output_path)
    device = chosen_device(args.device)
    eval_images = None if args.eval_images is None else open_images(args.eval_images)
    model = HookedViT.from_pretrained(
        args.model or _FIRST_MODEL, device=device, **weights_flag(args.pretrained)
    )
    adapted = _adapted(model, config, args)
    if eval_images is not None:
        table = _before_and_after(model, adapted, eval_images, args)
        print(table.map(lambda share: f"{100 * share:.1f}").to_string())
    print(f"The adapted model is in {args.output_path}")
    print(f"Train an SAE on it:  vit-sae train --model {args.output_path} --images SOURCE")
    return 0


def _config(args: argparse.Namespace) -> AdaptationConfig:
    from vit_sae_plugin.adaptation import AdaptationConfig
    from vit_sae_plugin.training import parse_setting

    names = {entry.name for entry in fields(AdaptationConfig)}
    given = {name: getattr(args, name, None) for name in names}
    settings = {name: value for name, value in given.items() if value is not None}
    for assignment in args.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment!r} has no '='; want FIELD=VALUE")
        settings[name] = parse_setting(value)
    return AdaptationConfig.from_dict(settings)


def _adapted(
    model: HookedViT, config: AdaptationConfig | None, args: argparse.Namespace
) -> HookedViT:
    from vit_sae_plugin.adaptation import adapt, load_checkpoint

    if config is None:
        adapted = load_checkpoint(args.checkpoint, model, args.output_path)
        print(f"{args.checkpoint}: {_prompts_in_words(adapted)}", file=sys.stderr)
        return adapted
    return adapt(
        model,
        args.images,
        config,
        args.output_path,
        n_workers=args.n_workers,
        overwrite=args.overwrite,
    )


def _prompts_in_words(adapted: HookedViT) -> str:
    from vit_sae_plugin.adaptation import read_config

    values = read_config(Path(adapted.model_name.removeprefix("adapted:")))
    config = values["config"]
    depth = f" in {config['depth']} blocks" if config["depth"] else ""
    return (
        f"{config['method']}, {config['n_prompts']} prompt tokens{depth}; its frozen CLIP: "
        f"{values['backbone']}"
    )


def _before_and_after(
    model: HookedViT, adapted: HookedViT, images: ImageSource, args: argparse.Namespace
) -> pd.DataFrame:
    """Accuracy on base and novel classes in percent, written as a CSV as well."""
    import pandas as pd

    from vit_sae_plugin.adaptation import accuracy_of_halves
    from vit_sae_plugin.atomic_files import write_file_atomically

    measured: dict[str, Any] = {
        name: accuracy_of_halves(one, images, n_workers=args.n_workers, progress=True)
        for name, one in (("before", model), ("after", adapted))
    }
    table = pd.DataFrame(measured).T
    table.index.name = "model"
    write_file_atomically(Path(args.output_path) / "accuracy.csv", table.to_csv)
    return table
