"""``vit-sae explore``: a live page on one SAE."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.saved_sae import load_model, load_sae

if TYPE_CHECKING:
    from sae_lens import SAE

SHAPES = "shapes:test?n_images=2000&n_objects=1"
"""The pictures for ``shapes-clip``: those that the demo's atlas is of."""


def run(args: argparse.Namespace) -> int:
    """Make ready what the page needs, and serve it until it is interrupted."""
    from vit_sae_plugin.explorer.page import import_gradio

    import_gradio()
    from vit_sae_plugin.datasets import open_images
    from vit_sae_plugin.explorer import open_explorer
    from vit_sae_plugin.explorer.server import free_socket, make_server
    from vit_sae_plugin.hooked_vit import HookedViT

    device = chosen_device(args.device)
    with free_socket(args.host, args.port) as socket:
        sae = load_sae(args.sae, device)
        images = open_images(_images(args, sae))
        model = load_model(sae, args, device)
        adapted = None
        if args.compare is not None:
            adapted = HookedViT.from_pretrained(args.compare, device=device)
        explorer = open_explorer(
            model,
            sae,
            images,
            adapted=adapted,
            atlas=args.atlas,
            places=_places(Path(args.sae)),
            names=_names(Path(args.sae), sae),
            n_reference_images=args.n_reference_images,
            batch_size_images=args.batch_size_images,
            n_workers=args.n_workers,
        )
        server = make_server(explorer, args.host)
        host, port = socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(
            f"Open this page in a browser:  http://{shown}:{port}/   (Ctrl-C ends it)", flush=True
        )
        if host not in ("127.0.0.1", "::1"):
            print("Whoever reaches this machine can open it: it asks for no password.", flush=True)
        server.run([socket])
    return 0


def _images(args: argparse.Namespace, sae: SAE[Any]) -> str:
    if args.images is not None:
        return args.images
    if (args.model or sae.cfg.metadata.model_name) == "shapes-clip":
        return SHAPES
    raise ValueError("want --images SOURCE: pictures to pick from, and to find reference images in")


def _places(sae: Path) -> list[Path]:
    """Where an atlas of this SAE may lie: in its folder, or where the demo puts it."""
    inside = sorted(path for path in sae.glob("*") if path.is_dir())
    return [*inside, sae.absolute().parents[1] / "atlas"]


def _names(sae_folder: Path, sae: SAE[Any]) -> dict[int, str]:
    """Names kept in the SAE's own folder; those of an atlas come with it."""
    from vit_sae_plugin.analysis.atlas.latent_names import NAMES_FILE, read_names
    from vit_sae_plugin.fingerprints import known_sae_fingerprint

    path = sae_folder / NAMES_FILE
    if not path.is_file():
        return {}
    read = read_names(path, sae_sha256=known_sae_fingerprint(sae), d_sae=sae.cfg.d_sae)
    return {latent: entry.name for latent, entry in read.items() if entry.name}
