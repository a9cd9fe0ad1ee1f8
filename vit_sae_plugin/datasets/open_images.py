"""One short text, or any object that holds images, to an image source."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from PIL import Image

from vit_sae_plugin.datasets.array_images import ArrayImages
from vit_sae_plugin.datasets.benchmark_sets import BENCHMARK_SETS, BenchmarkImages
from vit_sae_plugin.datasets.folder_images import FolderImages
from vit_sae_plugin.datasets.hugging_face_images import HuggingFaceImages, is_saved_dataset
from vit_sae_plugin.datasets.image_decoding import DecodingLimits
from vit_sae_plugin.datasets.image_source import ImageSource
from vit_sae_plugin.datasets.shape_scenes import ShapeScenes
from vit_sae_plugin.datasets.subsets import few_shot, of_classes
from vit_sae_plugin.datasets.webdataset_images import WebDatasetImages, check_only_local_files

FORMS = (
    "'path/to/folder', 'folder:PATH', 'hf:NAME[:SPLIT]', 'wds:SHARDS-{000..010}.tar', "
    "'shapes[:train|test]', a benchmark as in 'dtd:PATH[:SPLIT]', each but the first with options "
    "as in 'shapes:test?n_images=2000'"
)


N_SHAPE_SCENES = 100_000
"""Scenes of "shapes" when the text gives no n_images."""


def open_images(images: Any, *, from_file: bool = False, **options: Any) -> ImageSource:
    """Make an image source.

    Args:
        images: one of

            - an ``ImageSource``: returned as it is
            - a path, or "folder:PATH": ``FolderImages``, or ``HuggingFaceImages`` if the folder was
              written by ``datasets``' ``save_to_disk``
            - "hf:NAME" or "hf:NAME:SPLIT": ``HuggingFaceImages``
            - "wds:SHARDS": ``WebDatasetImages``
            - "shapes", "shapes:train" or "shapes:test": ``ShapeScenes``
            - "dtd:PATH" or "dtd:PATH:test", or another of ``BENCHMARK_SETS``: ``BenchmarkImages``
            - a ``datasets.Dataset`` or ``IterableDataset``: ``HuggingFaceImages``
            - a uint8 array or tensor, or a sequence of arrays or PIL pictures: ``ArrayImages``

            A text with a prefix may end in options: "shapes:test?n_images=2000&n_objects=1-3",
            "hf:cifar10?streaming=true&label_column=fine_label", "folder:photos?max_pixels=1000000".
            Those of map-style sources may choose images: "dtd:PATH?shots=16&shots_seed=1" some of
            each class (``few_shot``), "…?classes=base" or "novel" half of the classes
            (``of_classes``); with both, shots are drawn first.
        from_file: the text was read from a file (a run's configuration, an SAE folder, a
            checkpoint) that someone else may have written: see ``check_source_from_file``.
        **options: further arguments of the source, see its class.

    Raises:
        ValueError: a text of no known form, an option the source does not have, or a text from a
            file that would run a command.
        FileNotFoundError: there is no such folder.
    """
    if isinstance(images, ImageSource):
        if options:
            raise ValueError(
                f"{images.name} is opened already; want no options, but {sorted(options)} were "
                "given"
            )
        return images
    if isinstance(images, (str, Path)):
        if from_file:
            check_source_from_file(images)
        return _open_text(images, options)
    datasets = sys.modules.get("datasets")  # not loaded: then it is not one of its objects
    if datasets is not None and isinstance(
        images, (datasets.Dataset, datasets.IterableDataset, datasets.DatasetDict)
    ):
        return HuggingFaceImages(images, **options)
    if hasattr(images, "__len__") or isinstance(images, Image.Image):
        return ArrayImages(images, **options)
    raise TypeError(
        f"images is a {type(images).__name__}; want a text ({FORMS}), a datasets.Dataset, an "
        "array, or a list of arrays or PIL pictures"
    )


def check_source_from_file(text: str | Path) -> None:
    """Refuse a text that runs a command when opened; commands are run only if the user types them.

    "wds:pipe:COMMAND" runs one in a shell, and "wds:https://…" starts a download program.

    Raises:
        ValueError: the text would start a program; says how to allow it.
    """
    kind, place = _kind_and_place(text)
    if kind != "wds":
        return
    shards = _split_options(kind, place, str(text))[0]
    try:
        check_only_local_files(shards)
    except ValueError as error:
        raise ValueError(
            f"the images {str(text)!r} are named in a file, not by you, and opening them would "
            f"start a program: {error}; if you trust the file, name them yourself: --images on the "
            "command line, or override_images=open_images(…) in code"
        ) from None


def _open_text(text: str | Path, options: dict[str, Any]) -> ImageSource:
    kind, place = _kind_and_place(text)
    if kind != "" and not (kind == "folder" and os.path.isdir(place)):
        place, options_in_text = _split_options(kind, place, str(text))
        options = {**options_in_text, **options}
    choice = {name: options.pop(name) for name in _CHOICE if name in options}
    return _chosen(_open_kind(kind, place, str(text), options), **choice)


def _chosen(
    source: ImageSource, classes: str = "all", shots: int | None = None, shots_seed: int = 0
) -> ImageSource:
    if shots is not None:
        source = few_shot(source, shots, shots_seed)
    return of_classes(source, classes)


def _open_kind(kind: str, place: str, text: str, options: dict[str, Any]) -> ImageSource:
    if kind == "shapes":
        return ShapeScenes(**{"split": place or "train", "n_images": N_SHAPE_SCENES, **options})
    if not place:
        raise ValueError(f"{text!r} names no images; want {FORMS}")
    if kind in BENCHMARK_SETS:
        path, _, split = place.rpartition(":")
        if not path or split not in ("train", "val", "test"):
            path, split = place, ""
        return BenchmarkImages(kind, path, **{"split": split, **options})
    if kind == "wds":
        return WebDatasetImages(place, **options)
    if kind == "hf":
        name, _, split = (place, "", "") if os.path.isdir(place) else place.partition(":")
        return HuggingFaceImages(name, **{"split": split or None, **options})
    if text.startswith("cache:"):
        raise ValueError(
            f"{text!r} holds activations, no pictures: train, analyze and eval --suite splice, "
            "reconstruction and msae read it; want the images here"
        )
    if kind == "" and not os.path.exists(place):
        raise FileNotFoundError(
            f"there is no folder {place!r}, and it is of no other form; want {FORMS}"
        )
    if is_saved_dataset(place):
        return HuggingFaceImages(place, **options)
    return FolderImages(place, **options)


def _kind_and_place(text: str | Path) -> tuple[str, str]:
    """The prefix, "" for a bare path, and what follows it."""
    if isinstance(text, Path):
        return "", str(text)
    if text == "shapes" or text.startswith(("shapes:", "shapes?")):
        return "shapes", text.removeprefix("shapes").removeprefix(":")
    for kind in (*_OPTIONS, *BENCHMARK_SETS):
        if text.startswith(f"{kind}:"):
            return kind, text.removeprefix(f"{kind}:")
    return "", text


def _split_options(kind: str, place: str, text: str) -> tuple[str, dict[str, Any]]:
    """Take "?name=value&name=value" off the end of ``place``."""
    before, mark, query = place.rpartition("?")
    if not mark or "=" not in query:  # "?" alone may be part of a shard pattern
        return place, {}
    known = _OPTIONS.get(kind, _BENCHMARK_OPTIONS)
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise ValueError(
                f"{text!r} has an option {name!r}; want one of {kind}: {', '.join(known)}"
            )
        try:
            options[name] = known[name](value)
        except ValueError as error:
            raise ValueError(f"in {text!r} the option {name} is {value!r}: {error}") from None
    limits = {name: options.pop(name) for name in _LIMITS if name in options}
    if limits:
        options["limits"] = DecodingLimits(**limits)
    return before, options


def _yes_or_no(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError("want true or false")
    return value.lower() in ("true", "1", "yes")


def _number_or_range(value: str) -> int | tuple[int, int]:
    """ "2", or "1-3" (also "1,3")."""
    first, mark, last = value.replace(",", "-").partition("-")
    return (int(first), int(last)) if mark else int(first)


_LIMITS: dict[str, Callable[[str], Any]] = {
    "max_pixels": int,
    "max_bytes": int,
    "max_aspect_ratio": float,
}
_CHOICE: dict[str, Callable[[str], Any]] = {"classes": str, "shots": int, "shots_seed": int}
_BENCHMARK_OPTIONS: dict[str, Callable[[str], Any]] = {
    "splits": str,
    "attribute": str,
    **_CHOICE,
    **_LIMITS,
}
_OPTIONS: dict[str, dict[str, Callable[[str], Any]]] = {
    "shapes": {
        "n_images": int,
        "n_objects": _number_or_range,
        "seed": int,
        "style": str,
        "bias": float,
        **_CHOICE,
    },
    "folder": {"class_folders": _yes_or_no, **_CHOICE, **_LIMITS},
    "hf": {
        "config_name": str,
        "data_dir": str,
        "revision": str,
        "streaming": _yes_or_no,
        "image_column": str,
        "label_column": str,
        **_CHOICE,
        **_LIMITS,
    },
    "wds": {"image_key": str, "label_key": str, **_LIMITS},
}
