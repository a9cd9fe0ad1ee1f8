"""`vit-sae name`: names for latents, from a vocabulary, in the atlas."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.saved_sae import load_model, load_sae

if TYPE_CHECKING:
    from vit_sae_plugin.analysis import LatentAtlas
    from vit_sae_plugin.concepts.naming import Naming

CANDIDATES_FILE = "name_candidates.csv"


def run(args: argparse.Namespace) -> int:
    """Name the latents of an atlas, or of an SAE without one, and say what came of it."""
    from vit_sae_plugin.analysis import LatentAtlas
    from vit_sae_plugin.analysis.atlas.atlas_folder import holds_atlas
    from vit_sae_plugin.analysis.atlas.latent_names import NAMES_FILE
    from vit_sae_plugin.analysis.atlas.same_sae import check_same_model, check_same_sae
    from vit_sae_plugin.attached_sae import AttachedSAE
    from vit_sae_plugin.concepts.naming import keep_names, name_latents

    settings = _route_settings(args)
    folder = Path(args.folder)
    atlas = LatentAtlas.load(folder) if holds_atlas(folder) else None
    device = chosen_device(args.device)
    sae = load_sae(_sae_folder(args, atlas), device)
    if atlas is not None:
        check_same_sae(atlas, sae)
    model = load_model(sae, args, device)
    if atlas is not None:
        check_same_model(atlas, model)
    naming = name_latents(
        AttachedSAE(model, sae),
        args.images,
        args.vocabulary,
        route=args.route,
        atlas=atlas,
        threshold=args.threshold,
        false_naming_rate=args.false_naming_rate,
        templates=args.templates,
        n_candidates=args.n_candidates,
        n_images=args.n_images,
        batch_size_images=args.batch_size_images,
        n_workers=args.n_workers,
        cache=folder / "words",
        seed=args.seed,
        progress=True,
        **settings,
    )
    path = folder / CANDIDATES_FILE
    write_candidates(naming, path)
    if atlas is not None:
        counts = keep_names(atlas, naming)
    else:
        counts = _keep_beside_sae(folder / NAMES_FILE, naming, sae.cfg.d_sae)
    print(_summary(naming, counts, sae.cfg.d_sae))
    print(f"The names are in {folder / NAMES_FILE}, all candidates in {path}")
    if not counts["named"]:
        print("no match was clear enough; see the candidates, or give --threshold", file=sys.stderr)
    return 0


def _sae_folder(args: argparse.Namespace, atlas: LatentAtlas | None) -> str:
    """Where the SAE is: given, or the folder itself, or the one that the atlas lies in."""
    if args.sae is not None:
        return args.sae
    if atlas is None:
        return args.folder
    above = Path(args.folder).resolve().parent
    if not (above / "cfg.json").is_file():
        raise ValueError(
            f"{args.folder} is an atlas that doesn't lie in its SAE's folder; want --sae FOLDER"
        )
    return str(above)


def _keep_beside_sae(path: Path, naming: Naming, d_sae: int) -> dict[str, int]:
    from vit_sae_plugin.analysis.atlas.latent_names import read_names, write_names
    from vit_sae_plugin.concepts.naming import merge_names

    sae_sha256 = naming.sae_sha256
    before = read_names(path, sae_sha256=sae_sha256, d_sae=d_sae) if path.is_file() else {}
    merged, counts = merge_names(before, naming)
    write_names(path, merged, sae_sha256)
    return counts


def write_candidates(naming: Naming, path: Path) -> None:
    """All candidates with their scores, as a table."""
    from vit_sae_plugin.atomic_files import write_file_atomically

    write_file_atomically(path, lambda aside: naming.table().to_csv(aside))


def _route_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the one route that is taken."""
    given = {"level": args.level, "factor": args.factor, "kind": args.kind}
    belongs = {"level": "image-conditioned", "factor": "measured-shift", "kind": "direct"}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if belongs[name] != args.route:
            raise ValueError(f"--{name} goes with --route {belongs[name]}, not {args.route}")
    return given


def _summary(naming: Naming, counts: dict[str, int], d_sae: int) -> str:
    threshold, vocabulary = naming.threshold, naming.candidates.vocabulary
    lines = [
        f"{counts['named']:,} of {d_sae:,} latents have a name from {vocabulary.name!r} by the "
        f"route {naming.route} (clearness {threshold.clearness:.3g} or more: {threshold.rule})"
    ]
    if counts["kept"]:
        lines.append(f"{counts['kept']} names or notes written by hand stay as they are")
    if counts["removed"]:
        lines.append(f"{counts['removed']} earlier names are no longer clear and are gone")
    table = naming.table()
    named = table[table["is_name"]].sort_values("clearness", ascending=False, kind="stable")
    if len(named):
        shown = named.head(10).droplevel("rank")[["word", "score", "margin", "clearness"]]
        lines += ["", shown.round(3).to_string(), ""]
    return "\n".join(lines)
