"""An atlas as files in the shape of Neuronpedia's bulk import."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from vit_sae_plugin.analysis.pictures.heatmaps import encode_images
from vit_sae_plugin.atomic_files import write_folder_atomically
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.datasets.image_lookup import images_by_index
from vit_sae_plugin.hooked_vit.hook_names import layer_of
from vit_sae_plugin.report.neuronpedia_rows import (
    CLASS_LOGITS,
    NO_LOGITS,
    NO_PLACE,
    ExportNames,
    activation_row,
    explanation_row,
    feature_row,
    table_rows,
)

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.analysis import LatentAtlas
    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

LATENTS_A_FILE = 1024
_IMAGES_AT_ONCE = 32
_N_ALIGNED, _N_LOGITS = 3, 10
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


def export_neuronpedia(
    model: HookedViT,
    sae: SAE[Any],
    atlas: LatentAtlas,
    images: Any,
    folder: str | Path,
    *,
    model_id: str | None = None,
    source_set: str = "vit-sae",
    creator_id: str = "",
    creator_name: str = "",
    latents: Sequence[int] | None = None,
    descriptions: Mapping[int, str] | None = None,
    class_names: Sequence[str] | None = None,
    created_at: datetime | None = None,
    progress: bool = True,
) -> Path:
    """Write features and activations in the shape of Neuronpedia's files.

    ``folder/MODEL/SOURCE/`` gets ``release.jsonl``, ``model.jsonl``, ``sourceset.jsonl``,
    ``source.jsonl``, ``features/batch-N.jsonl.gz``, ``activations/batch-N.jsonl.gz``, with
    descriptions ``explanations/batch-0.jsonl.gz``, and ``NOT_INCLUDED.md``, which says what of the
    atlas has no place in them. Each latent's activations are those on its reference images, patch
    by patch, with ``"row,column"`` for words and the image's id. Dead latents are left out.

    Args:
        model: the model that was analysed.
        sae: the SAE that was analysed.
        atlas: what ``analyze`` made of them.
        images: the source that was analysed, or what ``open_images`` takes.
        folder: where the files go; ``folder/MODEL/SOURCE`` is replaced.
        model_id: default: the model's name, in plain letters.
        source_set: name of the set that this SAE belongs to.
        creator_id, creator_name: yours, at Neuronpedia.
        latents: which; None: all that are not dead.
        descriptions: latent → name, written as explanations.
        class_names: for an SAE of ``hook_image_embed``: classes to take logits of; default: the
            atlas's. Ignored elsewhere, where there are no such logits.
        created_at: the time written into each row; default: now.
        progress: show a progress bar.

    Returns:
        ``folder/MODEL/SOURCE``.

    Raises:
        ValueError: there is no such latent, or the SAE isn't the atlas's.
    """
    attached = AttachedSAE(model, sae)
    if sae.cfg.d_sae != atlas.d_sae:
        raise ValueError(
            f"the atlas has {atlas.d_sae} latents; want {sae.cfg.d_sae}, those of the SAE"
        )
    if latents is None:
        dead = atlas.latents["is_dead"].to_numpy(dtype=bool)
        chosen = [int(i) for i in np.flatnonzero(~dead)]
    else:
        chosen = sorted({atlas.check_latent(latent) for latent in latents})
    hook_name = attached.source.hook_name
    layer = layer_of(hook_name)
    source_id = f"{'out' if layer is None else layer}-{_plain(source_set)}"
    model_id = _plain(model_id or model.cfg.model_name)
    names = ExportNames(
        model_id=model_id,
        source_id=source_id,
        source_set=_plain(source_set),
        release=_plain(source_set),
        creator_id=creator_id,
        creator_name=creator_name,
        created_at=(created_at or datetime.now(UTC)).isoformat(),
    )
    logits = _class_logits(attached, class_names or atlas.info.class_names)
    target = Path(folder) / model_id / source_id

    def write(inside: Path) -> None:
        _write_tables(inside, names, atlas, attached)
        _write_features(inside, names, atlas, sae, chosen, hook_name, logits)
        _write_activations(inside, names, atlas, attached, images, chosen, progress)
        if descriptions:
            rows = [
                explanation_row(names, int(i), text, type_name="vit-sae", notes=hook_name)
                for i, text in sorted(descriptions.items())
                if atlas.check_latent(i) in chosen
            ]
            _write_rows(inside / "explanations" / "batch-0.jsonl.gz", rows)
        note = NO_LOGITS if logits is None else CLASS_LOGITS
        (inside / "NOT_INCLUDED.md").write_text(NO_PLACE.format(logits=note), encoding="utf-8")

    write_folder_atomically(target, write)
    return target


def pseudo_tokens(layout: TokenLayout) -> list[str]:
    """A word for each token: ``"row,column"`` for a patch, its role for any other."""
    places = layout.row_and_column.tolist()
    return [
        f"{place[0]},{place[1]}" if role == "patch" else role
        for role, place in zip(layout.roles, places, strict=True)
    ]


def _write_tables(
    inside: Path, names: ExportNames, atlas: LatentAtlas, attached: AttachedSAE
) -> None:
    source = attached.source
    notes = {
        "hook_name": source.hook_name,
        "token_kind": source.token_kind,
        "grid": list(atlas.info.grid),
        "architecture": atlas.info.architecture,
        "preprocessing": atlas.info.model_preprocessing,
        "input_statistics": attached.sae.cfg.metadata.input_statistics is not None,
        "made by": "vit_sae_plugin: compatible rows, pictures stay here",
    }
    rows = table_rows(
        names,
        n_layers=attached.model.cfg.n_layers,
        data_name=atlas.info.data_name,
        n_images=atlas.info.n_images,
        n_tokens=attached.n_tokens,
        description=f"{atlas.info.architecture} SAE of {source.hook_name}, image patches",
        notes=json.dumps(notes),
    )
    for file_name, row in rows.items():
        (inside / file_name).write_text(json.dumps(row, allow_nan=False) + "\n", encoding="utf-8")


def _write_features(
    inside: Path,
    names: ExportNames,
    atlas: LatentAtlas,
    sae: SAE[Any],
    chosen: Sequence[int],
    hook_name: str,
    logits: dict[str, Any] | None,
) -> None:
    table = atlas.latents
    decoder = sae.W_dec.detach().float().cpu()
    middles = np.sqrt(atlas.histogram_edges[:-1] * atlas.histogram_edges[1:])
    for number, part in _files(chosen):
        rows = []
        for latent in part:
            similar = atlas.similar(latent)
            rows.append(
                feature_row(
                    names,
                    latent,
                    hook_name=hook_name,
                    vector=_rounded(decoder[latent]),
                    max_activation=_finite(table.at[latent, "max_activation"]),
                    token_frequency=_finite(table.at[latent, "token_frequency"]),
                    similar={
                        "indices": [int(i) for i in similar.index],
                        "values": _rounded(similar["cosine"]),
                    },
                    aligned=_aligned(decoder[latent]),
                    histogram=_bars(atlas.histogram[latent], middles),
                    logits={} if logits is None else _logits_of(logits, decoder[latent]),
                )
            )
        _write_rows(inside / "features" / f"batch-{number}.jsonl.gz", rows)


def _write_activations(
    inside: Path,
    names: ExportNames,
    atlas: LatentAtlas,
    attached: AttachedSAE,
    images: Any,
    chosen: Sequence[int],
    progress: bool,
) -> None:
    """Each image goes through the model once; its latents wait in a file till their turn."""
    shown = [(latent, rank) for latent in chosen for rank in range(len(_images_of(atlas, latent)))]
    by_image: dict[int, list[tuple[int, int]]] = {}
    for place, (latent, rank) in enumerate(shown):
        by_image.setdefault(int(_images_of(atlas, latent)[rank]), []).append((place, latent))
    tokens = pseudo_tokens(attached.layout)
    with tempfile.TemporaryFile(dir=inside) as file:
        values = np.memmap(
            file, np.float32, mode="w+", shape=(max(len(shown), 1), max(len(tokens), 1))
        )
        loaded = images_by_index(open_images(images), by_image)
        with tqdm(total=len(by_image), unit="image", disable=not progress) as bar:
            while some := list(islice(loaded, _IMAGES_AT_ONCE)):
                encoded = encode_images(attached, [image for _, image in some])
                for (index, _), latents_td in zip(some, encoded, strict=True):
                    for place, latent in by_image[index]:
                        values[place] = latents_td[:, latent].cpu().numpy()
                    bar.update()
        place = 0
        for number, part in _files(chosen):
            rows = []
            for latent in part:
                references = atlas.reference_images(latent)
                for rank, image_id in enumerate(references["id"]):
                    rows.append(
                        activation_row(
                            names,
                            latent,
                            rank,
                            tokens=tokens,
                            values=_rounded(values[place]),
                            data_source=atlas.info.data_name,
                            image_id=str(image_id),
                        )
                    )
                    place += 1
            _write_rows(inside / "activations" / f"batch-{number}.jsonl.gz", rows)


def _images_of(atlas: LatentAtlas, latent: int) -> np.ndarray:
    """Indices of a latent's reference images, the strongest first."""
    images = atlas.references[atlas.default_aggregation].image[latent]
    return images[images >= 0]


def _files(chosen: Sequence[int]) -> Iterable[tuple[int, Sequence[int]]]:
    for number, start in enumerate(range(0, len(chosen), LATENTS_A_FILE)):
        yield number, chosen[start : start + LATENTS_A_FILE]


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    # no time in the header: the same rows are the same bytes
    path.write_bytes(gzip.compress(lines.encode("utf-8"), compresslevel=5, mtime=0))


def _aligned(vector: torch.Tensor) -> dict[str, list[Any]]:
    """The coordinates that a decoder row points along most, and their share of its L1 norm."""
    indices = vector.abs().topk(min(_N_ALIGNED, len(vector))).indices
    total = vector.abs().sum().clamp(min=torch.finfo(vector.dtype).tiny)
    return {
        "indices": indices.tolist(),
        "values": _rounded(vector[indices]),
        "l1": _rounded(vector[indices].abs() / total),
    }


def _bars(counts: np.ndarray, middles: np.ndarray) -> tuple[list[int], list[float]]:
    filled = np.flatnonzero(counts)
    if not len(filled):
        return [], []
    kept = slice(filled[0], filled[-1] + 1)
    return [int(n) for n in counts[kept]], [float(f"{value:.6g}") for value in middles[kept]]


@torch.no_grad()
def _class_logits(attached: AttachedSAE, class_names: Any) -> dict[str, Any] | None:
    """Class names and their directions, where a latent's direction is one of embeddings."""
    model = attached.model
    has_text = model.tower.text_method is not None and model.tokenizer is not None
    if attached.source.hook_name != "hook_image_embed" or not has_text or not class_names:
        return None
    embeddings = model.encode_text([str(name) for name in class_names]).float().cpu()
    embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
    return {
        "names": [str(name) for name in class_names],
        "directions": embeddings,
        "scale": float(model.logit_scale or 1.0),
    }


def _logits_of(logits: Mapping[str, Any], vector: torch.Tensor) -> dict[str, list[Any]]:
    values = logits["directions"] @ (vector / vector.norm().clamp(min=1e-12)) * logits["scale"]
    order = values.argsort(descending=True, stable=True).tolist()
    best, worst = order[:_N_LOGITS], order[::-1][:_N_LOGITS]
    return {
        "pos_str": [logits["names"][i] for i in best],
        "pos_values": _rounded(values[best]),
        "neg_str": [logits["names"][i] for i in worst],
        "neg_values": _rounded(values[worst]),
    }


def _rounded(values: Any) -> list[float]:
    """Six digits, as text files need no more."""
    return [float(f"{float(value):.6g}") for value in values]


def _finite(value: Any) -> float:
    number = float(value) if value is not None and value == value else 0.0
    return float(f"{number:.6g}")


def _plain(name: str) -> str:
    return _NOT_PLAIN.sub("-", name).strip("-") or "model"
