"""``adapt``: few-shot training of an adapted CLIP, and loading what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vit_sae_plugin.adaptation.config import AdaptationConfig
from vit_sae_plugin.adaptation.few_shot_training import FewShotTraining
from vit_sae_plugin.adaptation.insertion import n_blocks
from vit_sae_plugin.adaptation.saved_model import (
    CONFIG_FILE,
    AdaptationFileError,
    inserted,
    load_adapted_folder,
    read_config,
    recorded_settings,
    wrap,
    write_adapted,
)
from vit_sae_plugin.atomic_files import delete_leftovers, write_into_folder
from vit_sae_plugin.datasets import ImageSource, few_shot, of_classes, open_images
from vit_sae_plugin.fingerprints import weights_fingerprint
from vit_sae_plugin.hooked_vit import HookedViT

_UNFINISHED = "unfinished"


def adapt(
    model: str | HookedViT,
    images: Any,
    config: AdaptationConfig,
    folder: str | Path,
    *,
    device: str | None = None,
    n_workers: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> HookedViT:
    """Adapt a CLIP to the classes of some images, and write what it learnt into a folder.

    Training that was interrupted goes on, exactly where it was, when this is called again with the
    same arguments; a finished folder is opened rather than made again. In the folder are
    ``adaptation.json`` and ``adapter.safetensors``, which ``HookedViT.from_pretrained(folder)``
    loads, and ``metrics.csv``, with a line an epoch.

    Args:
        model: a name, as ``HookedViT.from_pretrained`` takes it, or a model, which isn't changed.
        images: labelled training images, as ``open_images`` takes them. Each class's shots are
            drawn first, with ``config.seed``, and then the half of the classes is chosen.
        config: the method and its settings.
        folder: where it goes.
        device: where to train (None: where the model is; for a name, the CPU).
        n_workers: processes that decode images.
        overwrite: begin anew, whatever the folder holds.
        progress: show a bar.

    Returns:
        The adapted model: an ordinary ``HookedViT``. Its prompt tokens are neither class token nor
        patches in ``model.cfg.tokens``, and ``model.zero_shot_classifier(class_names, templates)``
        gives its own class weights.

    Raises:
        ValueError: the images have too few of a class, or no class names; the method can't adapt
            this model; or the folder holds another adaptation.
        DivergedTrainingError: the loss is no longer a number.
    """
    folder = Path(folder)
    source = open_images(images)
    check_classes(source)
    chosen = source
    if config.shots is not None:
        chosen = few_shot(source, config.shots, config.seed)
    chosen = of_classes(chosen, config.half)
    class_names = [str(name) for name in chosen.class_names or []]
    if isinstance(model, str):
        model = HookedViT.from_pretrained(model, device=device)
    full = _with_templates(config.complete(n_blocks(model, config.method)), source)
    identity = {
        "config": full.to_dict(),
        "images": {
            "name": chosen.name,
            "sha256": chosen.fingerprint(),
            "n_images": len(chosen.labels()),
        },
        "class_names": class_names,
        "base": {
            "model_name": model.model_name,
            "weights_sha256": weights_fingerprint(model.bare_model),
        },
    }
    if (folder / CONFIG_FILE).exists() and not overwrite:
        _check_same(folder, read_config(folder), identity)
        return load_adapted(folder, base=model, device=device)
    loaded, insertion = inserted(model, full, class_names)
    if device is not None:
        loaded.module.to(device)
    adapted = wrap(loaded, f"adapted:{folder}", {})
    folder.mkdir(parents=True, exist_ok=True)
    delete_leftovers(folder)
    training = FewShotTraining(adapted, insertion.parameters, chosen, full, n_workers=n_workers)
    training.run(folder / _UNFINISHED, identity, overwrite=overwrite, progress=progress)

    def write(aside: Path) -> None:
        write_adapted(
            aside, model, full, class_names, training.tensors(), {"images": identity["images"]}
        )
        training.metrics.to_csv(aside / "metrics.csv", index=False)

    write_into_folder(folder, write, last=CONFIG_FILE)
    training.remove_snapshot(folder / _UNFINISHED)
    return load_adapted(folder, base=model, device=device)


def load_adapted(
    folder: str | Path, *, base: HookedViT | None = None, device: str | None = None
) -> HookedViT:
    """The adapted model in a folder, as ``HookedViT.from_pretrained(folder)`` gives it.

    Args:
        folder: where ``adapt`` wrote it.
        base: the model that was adapted, if it has no name by which it could be loaded, or is
            loaded already; it isn't changed.
        device: where to put the model (None: where ``base`` is, or the CPU).

    Raises:
        AdaptationFileError: the files are damaged, or don't belong to the model.
    """
    folder = Path(folder)
    if base is None:
        read_config(folder)  # says what is wrong with the folder, not with the name
        return HookedViT.from_pretrained(f"adapted:{folder}", device=device)
    loaded = load_adapted_folder(folder, base=base)
    loaded.module.to(device if device is not None else base.cfg.device)
    return wrap(loaded, f"adapted:{folder}", recorded_settings(folder))


def check_classes(source: ImageSource) -> None:
    """Raise a ValueError unless a source's images have classes with names, each of them a label."""
    if source.n_images is None:
        raise ValueError(f"{source.name} is a stream; want images whose number is known")
    if not source.class_names:
        raise ValueError(
            f"{source.name} has no class names; want labelled images, such as a folder whose "
            "sub-folders are classes"
        )
    labels = source.labels()
    n_classes = len(source.class_names)
    if len(labels) and int(labels.max()) >= n_classes:
        raise ValueError(
            f"{source.name} has labels up to {int(labels.max())}, but {n_classes} class names; "
            f"want {int(labels.max()) + 1}, one for each label"
        )


def _with_templates(config: AdaptationConfig, source: ImageSource) -> AdaptationConfig:
    """The config with the templates of the images' authors, where the method wants templates and
    none are given."""
    if config.method in ("maple", "coop") or config.templates is not None or not source.templates:
        return config
    return replace(config, templates=list(source.templates))


def _check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise unless what a folder was made with is what is wanted now."""
    for part, values in wanted.items():
        there, here = found.get(part), values
        if isinstance(there, dict):
            name = next((n for n in here if there.get(n) != here[n]), None)
            if name is None:
                continue
            part, there, here = f"{part}.{name}", there.get(name), here[name]
        if there != here:
            raise AdaptationFileError(
                f"{folder} holds an adaptation with {part}={there!r}, and {here!r} is wanted now; "
                "choose another folder, or overwrite it (--overwrite)"
            )
