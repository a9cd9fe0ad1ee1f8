"""``vit-sae frontier``: several saved SAEs side by side, as tables, plots and a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.saved_sae import load_model, load_sae

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.evaluation import EvaluationReport

_ONLY_IMAGES = ("model", "pretrained", "n_images", "n_workers")
NESTED = "matryoshka_topk"
"""The architecture that keeps any number of latents: a curve, not a point."""


def run(args: argparse.Namespace) -> int:
    """Measure each SAE on the same rows, and write what sets them side by side."""
    from vit_sae_plugin.report.frontier_page import check_frontier_folder, write_frontier

    if (args.images is None) == (args.embeddings is None):
        raise ValueError("want either --images SOURCE or --embeddings FILE to measure the SAEs on")
    if args.embeddings is not None:
        for name in _ONLY_IMAGES:
            if getattr(args, name):
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} doesn't go with --embeddings, but with --images")
    names = args.names.split(",") if args.names else short_names(args.saes)
    if len(names) != len(args.saes) or len(set(names)) != len(names):
        raise ValueError(f"--names are {names}; want {len(args.saes)} different ones, an SAE each")
    check_frontier_folder(args.output_path)
    check_output_folder(args.output_path)
    device = chosen_device(args.device)
    saes = {name: load_sae(folder, device) for name, folder in zip(names, args.saes, strict=True)}
    reports = {}
    for name, sae in saes.items():
        print(f"measuring {name}", file=sys.stderr, flush=True)
        try:
            reports[name] = _measure(sae, args, device)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    curves = [name for name, sae in saes.items() if sae.cfg.architecture() == NESTED]
    modalities = {name: report.embeddings.index[0] for name, report in reports.items()}
    if len(set(modalities.values())) > 1:
        raise ValueError(f"the SAEs read {modalities}; want all of one modality")
    modality = modalities[names[0]]
    page = write_frontier(
        reports, args.output_path, curves=curves, modality=modality, notes=_notes(saes, args)
    )
    columns = ["n_rows", "l0", "fvu", "cosine_similarity", "cknna_latents_raw"]
    columns += ["cknna_latents_unit", "n_dead"]
    for name, report in reports.items():
        row = report.embeddings.loc[modality, columns]
        print(f"{name}: " + ", ".join(f"{column} {value:.4g}" for column, value in row.items()))
    print(f"\nTables, plots and a page that shows them: {page}")
    return 0


def _measure(sae: SAE[Any], args: argparse.Namespace, device: str) -> EvaluationReport:
    from vit_sae_plugin.activations.embedding_rows import load_embedding_rows
    from vit_sae_plugin.attached_sae import AttachedSAE
    from vit_sae_plugin.evaluation import evaluate_embeddings, image_rows

    if args.embeddings is not None:
        return evaluate_embeddings(sae, load_embedding_rows(args.embeddings, d_in=sae.cfg.d_in))
    rows = image_rows(
        AttachedSAE(load_model(sae, args, device), sae),
        args.images,
        batch_size_images=args.batch_size_images,
        n_images=args.n_images,
        n_workers=args.n_workers,
        progress=True,
    )
    return evaluate_embeddings(sae, rows)


def _notes(saes: dict[str, SAE[Any]], args: argparse.Namespace) -> list[str]:
    notes = [f"Measured on {args.embeddings or args.images}."]
    read: dict[tuple[Any, ...], list[str]] = {}
    for name, sae in saes.items():
        metadata = sae.cfg.metadata
        what = (metadata.model_name, metadata.hook_name, metadata.token_kind)
        read.setdefault(what, []).append(name)
    if len(read) > 1:
        listed = "; ".join(
            f"{', '.join(names)}: {' '.join(str(part) for part in what if part is not None)}"
            for what, names in read.items()
        )
        note = f"These SAEs don't read the same rows, so compare with care: {listed}."
        print(f"note: {note}", file=sys.stderr)
        notes.append(note)
    return notes


def short_names(folders: Sequence[str]) -> list[str]:
    """The last parts of the folders' paths that tell them apart, ``sae`` at the end left out."""
    parts = []
    for folder in folders:
        path = Path(folder).absolute()
        parts.append((path.parent if path.name == "sae" else path).parts)
    for n_last in range(1, max(len(part) for part in parts) + 1):
        names = ["/".join(part[-n_last:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError("the same SAE is given twice; want different folders")
