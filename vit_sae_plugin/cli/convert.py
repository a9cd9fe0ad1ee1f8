"""``vit-sae convert``: another project's SAE as a SAELens folder with a card."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.saved_sae import weights_flag

if TYPE_CHECKING:
    from sae_lens import SAE


def run(args: argparse.Namespace) -> int:
    """Read, save, and say what it is."""
    from vit_sae_plugin.atomic_files import write_folder_atomically
    from vit_sae_plugin.fingerprints import write_manifest
    from vit_sae_plugin.pretrained import load_pretrained_sae
    from vit_sae_plugin.report.card import write_card
    from vit_sae_plugin.saes.export import check_new_folder

    folder = Path(args.output_path)
    check_new_folder(folder)
    check_output_folder(folder, "another name")
    sae = load_pretrained_sae(args.source, **_options(args))

    def write(inside: Path) -> None:
        sae.save_model(inside)
        write_manifest(inside)
        write_card(inside, sae)

    write_folder_atomically(folder, write)
    print(_described(sae))
    print(f'\nLoad it by  sae_lens.SAE.load_from_disk("{folder}")')
    print(f"Measure it, and draw its card:  vit-sae card {folder} --images SOURCE")
    return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags state, by the names that readers know."""
    if args.pretrained is not None and args.model is None:
        raise ValueError("--pretrained goes with --model")
    stated = {
        "model_name": args.model,
        "model_from_pretrained_kwargs": weights_flag(args.pretrained) or None,
        "hook_name": args.hook_name,
        "token_kind": args.token_kind,
        "licence": args.licence,
        "dtype": args.dtype,
    }
    options = {name: value for name, value in stated.items() if value is not None}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {text!r}; want NAME=VALUE, such as --set threshold=0.3")
        options[name.strip()] = _value(value.strip())
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _described(sae: SAE[Any]) -> str:
    metadata = sae.cfg.metadata
    reads = [
        ("model", metadata.model_name),
        ("hook", metadata.hook_name),
        ("tokens", metadata.token_kind),
        ("licence", metadata.licence),
    ]
    lines = [f"{sae.cfg.architecture()}, {sae.cfg.d_in:,} → {sae.cfg.d_sae:,} latents"]
    lines += [f"  {name}: {value or 'not stated'}" for name, value in reads]
    if metadata.input_statistics is not None:
        lines.append(f"  input: centred, times {metadata.input_statistics['scale']:.6g}")
    return "\n".join(lines)
