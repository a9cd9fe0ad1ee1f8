"""What the flags of ``vit-sae train`` set, for one run or for a sweep."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.saved_sae import weights_flag

if TYPE_CHECKING:
    from vit_sae_plugin.hooked_vit import HookedViT

_OWN_FLAGS = (
    "hook_name token_kind training_tokens lr n_workers seed output_path".split()
)  # flags named as the setting they set


def changes_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags set, by the settings' whole names; ``--set`` last."""
    from vit_sae_plugin.training import parse_setting
    from vit_sae_plugin.training.setting_changes import flat_changes

    given = {name: getattr(args, name) for name in _OWN_FLAGS}
    given |= {
        "sae.architecture": args.architecture,
        "sae.d_sae": args.d_sae,
        "sae.expansion_factor": args.expansion_factor,
        "model_name": args.model,
        "dataset_path": args.images,
        "embeddings_path": args.embeddings,
        "eval_dataset_path": args.eval_images,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if args.model is not None or args.pretrained is not None:
        changes["model_from_pretrained_kwargs"] = weights_flag(args.pretrained)
    for assignment in args.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment!r} has no '='; want FIELD=VALUE")
        changes |= flat_changes({name: parse_setting(value)}, "--set ")
    return changes


def resumed_with(args: argparse.Namespace) -> tuple[Any, HookedViT | None, dict[str, Any]]:
    """With what an interrupted run may go on: its images (typed, so they may be a command) and its
    model, if named, and changes.

    Raises:
        ValueError: a flag that would alter the result.
    """
    from vit_sae_plugin.hooked_vit import HookedViT

    fixed = "preset config sweep embeddings architecture d_sae expansion_factor hook_name "
    fixed += "token_kind lr seed output_path set"
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
    return args.images, model, {name: value for name, value in changes.items() if value is not None}
