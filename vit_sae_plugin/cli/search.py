"""`vit-sae search`: images by concepts, or by another image, on a page beside plain search."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder, folder_name
from vit_sae_plugin.cli.saved_sae import load_model, load_sae

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.attached_sae import AttachedSAE
    from vit_sae_plugin.concepts.search_index import SearchIndex
    from vit_sae_plugin.datasets import ImageSource


def run(args: argparse.Namespace) -> int:
    """Open or make the index, search, print what was found, and write the page."""
    from vit_sae_plugin.attached_sae import AttachedSAE
    from vit_sae_plugin.concepts.search import search_by_concepts, search_by_image
    from vit_sae_plugin.datasets import open_images
    from vit_sae_plugin.report.search_page import write_search_page

    if not args.concepts.strip() and args.image is None:
        raise ValueError("want --concepts NAME:WEIGHT,… or --image INDEX|FILE to search by")
    page = Path(args.output_path)
    if page.is_dir():
        raise ValueError(f"--output-path {page} is a folder; want a file for the page")
    check_output_folder(page.parent)
    device = chosen_device(args.device)
    sae = load_sae(args.sae, device)
    names = _names(args, sae)
    images = open_images(args.images)
    attached = AttachedSAE(load_model(sae, args, device), sae)
    picture = None if args.image is None else _picture(args.image, images)
    index = _index(args, attached, images)
    if picture is None:
        result = search_by_concepts(
            attached, index, args.concepts, names, n=args.n, templates=args.templates
        )
    else:
        said = f"image {args.image}" if args.image.isdecimal() else Path(args.image).name
        result = search_by_image(
            attached, index, picture, names, args.concepts, n=args.n, said=said
        )
    print(f"{result.question}\n")
    columns = ["id", "score"]
    if result.has_plain_search:
        columns += ["cosine", "plain_rank"]
    print(result.by_concepts[columns].join(result.contributions).round(3).to_string())
    if result.has_plain_search:
        n, common = len(result.by_concepts), result.n_in_common
        print(f"\n{common} of {n} are found by plain cosine as well")
    else:
        print("\nno plain search beside: no word in the query that a text tower could read")
    write_search_page(page, result, images, query_image=picture)
    print(f"Open this page in a browser:  {page.resolve()}")
    return 0


def _names(args: argparse.Namespace, sae: SAE[Any]) -> dict[int, str]:
    """Names of latents: of the atlas named, else beside the SAE, else of the one atlas there."""
    from vit_sae_plugin.analysis.atlas.latent_names import NAMES_FILE, read_names
    from vit_sae_plugin.fingerprints import known_sae_fingerprint

    folder = Path(args.sae)
    places = [folder / NAMES_FILE, *sorted(folder.glob(f"*/{NAMES_FILE}"))]
    if args.atlas is not None:
        path = Path(args.atlas) / NAMES_FILE
        if not path.is_file():
            raise ValueError(
                f"the atlas {args.atlas} has no names; give some by 'vit-sae name {args.atlas}'"
            )
        places = [path]
    found = [path for path in places if path.is_file()]
    if not found:
        return {}
    if len(found) > 1 and found[0] != folder / NAMES_FILE:
        listed = ", ".join(str(path.parent) for path in found)
        raise ValueError(f"several atlases have names ({listed}); choose one by --atlas")
    read = read_names(found[0], sae_sha256=known_sae_fingerprint(sae), d_sae=sae.cfg.d_sae)
    return {latent: entry.name for latent, entry in read.items() if entry.name}


def _picture(said: str, images: ImageSource) -> Any:
    from vit_sae_plugin.datasets.image_decoding import decode_image

    if not said.isdecimal():
        if not Path(said).is_file():
            raise ValueError(
                f"--image {said}: there is no such file; want a picture, or an image's place in "
                "the source"
            )
        return decode_image(Path(said))
    n = images.n_images
    if n is not None and int(said) >= n:
        raise ValueError(f"--image {said}: {images.name} has {n} images; want 0 to {n - 1}")
    return images.record(int(said)).load()


def _index(args: argparse.Namespace, attached: AttachedSAE, images: ImageSource) -> SearchIndex:
    from vit_sae_plugin.concepts.search_index import SearchIndex, build_index, holds_index
    from vit_sae_plugin.fingerprints import short

    folder = Path(args.index or Path(args.sae) / folder_name("search", images))
    if holds_index(folder) and not args.overwrite:
        index = SearchIndex.load(folder)
        index.check_belongs(attached)
        if index.info["data_sha256"] != images.fingerprint():
            raise ValueError(
                f"the index in {folder} is of {index.info['data_name']} "
                f"[{short(index.info['data_sha256'])}], but --images is {images.name}; name "
                "another folder by --index, or give --overwrite"
            )
        return index
    check_output_folder(folder, "--index")
    index = build_index(
        attached,
        images,
        batch_size_images=args.batch_size_images,
        n_workers=args.n_workers,
        progress=True,
    )
    print(f"The index is in {index.save(folder)}")
    return index
