"""Images by their latents and embeddings, ready to be searched, and the folder that keeps them.

A folder of this format (version 1) holds

- ``index.json``: format version, hashes of model, SAE, data and of the files below;
- ``embeddings.safetensors``: ``embeds [n_images, d_embed]``, of length 1, in half precision;
- ``latents.safetensors``: for latent l the images ``image[start[l]:start[l + 1]]`` (int32, rising)
  that activate it, and how strongly, ``value``;
- ``images.parquet``: ``image_index`` (position in the source), ``id``, ``label`` (−1: none).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit_sae_plugin.atomic_files import write_into_folder
from vit_sae_plugin.concepts.image_conditioned import (
    Level,
    activations_and_embeddings,
    image_levels,
)
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.fingerprints import (
    check_file_hashes,
    file_hashes,
    known_model_fingerprint,
    known_sae_fingerprint,
    short,
    values_sha256,
)

if TYPE_CHECKING:
    from vit_sae_plugin.attached_sae import AttachedSAE

FORMAT_VERSION = 1
INDEX_FILE = "index.json"
_FILES = ("embeddings.safetensors", "latents.safetensors", "images.parquet")


@dataclass(frozen=True)
class SearchIndex:
    """A data set's images: embeddings, and for each latent the images that activate it."""

    embeds: Float[Tensor, "n_images d_embed"]
    """Image embeddings of length 1."""
    start: Int[Tensor, " d_sae_and_one"]
    """Latent l has the entries from ``start[l]`` up to, without, ``start[l + 1]``."""
    image: Int[Tensor, " entries"]
    """Row of the image of each entry."""
    value: Float[Tensor, " entries"]
    """Its activation, above 0."""
    images: pd.DataFrame
    """``image_index``, ``id`` and ``label`` of each row."""
    info: dict[str, Any]
    """What it was made from."""

    def __len__(self) -> int:
        return len(self.embeds)

    @property
    def d_sae(self) -> int:
        return len(self.start) - 1

    def entries(self, latent: int) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """The rows of the images that activate a latent, and how strongly, from 0 to 1: the
        activation divided by the largest on any image."""
        span = slice(int(self.start[latent]), int(self.start[latent + 1]))
        value = self.value[span].float()
        return self.image[span].long(), value / value.max() if len(value) else value

    def check_belongs(self, attached: AttachedSAE) -> None:
        """Raise unless the index was made from this model and SAE.

        Raises:
            ValueError: it was made from others.
        """
        found = {
            "model": known_model_fingerprint(attached.model),
            "sae": known_sae_fingerprint(attached.sae),
        }
        for name, sha256 in found.items():
            made_from = self.info[f"{name}_sha256"]
            if made_from != sha256:
                called = "SAE" if name == "sae" else name
                raise ValueError(
                    f"the search index was made from the {called} {short(made_from)}, but this "
                    f"one is {short(sha256)}; make the index anew, or take the {called} it is of"
                )

    def save(self, folder: str | Path) -> Path:
        """Write the index as a folder; an earlier one there is replaced."""
        folder = Path(folder)

        def write(aside: Path) -> None:
            save_file({"embeds": self.embeds.half().contiguous()}, aside / _FILES[0])
            latents = {"start": self.start, "image": self.image.int(), "value": self.value}
            save_file(latents, aside / _FILES[1])
            self.images.to_parquet(aside / _FILES[2])
            about = {"format_version": FORMAT_VERSION, **self.info}
            about["files"] = file_hashes(aside, _FILES)
            about["sha256"] = values_sha256(about)
            text = json.dumps(about, indent=1, ensure_ascii=False)
            (aside / INDEX_FILE).write_text(text, encoding="utf-8")

        write_into_folder(folder, write, last=INDEX_FILE)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> SearchIndex:
        """Open an index that was saved.

        Raises:
            ValueError: there is none, of another version, or a damaged one.
        """
        folder = Path(folder)
        info = _info(folder)
        check_file_hashes(folder, info.pop("files"))
        return cls(
            embeds=load_file(folder / _FILES[0])["embeds"].float(),
            images=pd.read_parquet(folder / _FILES[2]),
            info=info,
            **load_file(folder / _FILES[1]),
        )


def _info(folder: Path) -> dict[str, Any]:
    path = folder / INDEX_FILE
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        kept = info.pop("sha256")
        version = info["format_version"]
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no search index ({INDEX_FILE} is missing); make one"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged; make the search index anew") from None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"the search index in {folder} has format version {version!r}; this release reads "
            f"{FORMAT_VERSION}: make it anew"
        )
    if kept != values_sha256(info) or not isinstance(info.get("files"), dict):
        raise ValueError(f"{path} is damaged: its contents have changed; make the index anew")
    del info["format_version"]
    return info


def holds_index(folder: str | Path) -> bool:
    """Whether a search index lies in a folder."""
    return (Path(folder) / INDEX_FILE).is_file()


@torch.no_grad()
def build_index(
    attached: AttachedSAE,
    images: ImageSource,
    *,
    level: Level = "max",
    n_latents_per_image: int | None = 512,
    batch_size_images: int = 64,
    n_workers: int = 0,
    progress: bool = False,
) -> SearchIndex:
    """One pass over the images.

    Args:
        attached: the SAE on its model.
        images: what is to be searched.
        level: a latent's activation on an image: the maximum over its tokens, or the mean.
        n_latents_per_image: entries kept of each image, the strongest; None: all. It bounds memory
            and disk: 6 bytes an entry, and two an image and dimension of the embedding.
        batch_size_images, n_workers, progress: as elsewhere.

    Raises:
        ValueError: no readable image, or a number below 1.
    """
    if n_latents_per_image is not None and n_latents_per_image < 1:
        raise ValueError(f"n_latents_per_image is {n_latents_per_image}; want 1 or more, or None")
    walk = attached.walk(
        images,
        batch_size_images=batch_size_images,
        n_workers=n_workers,
        progress=progress,
        description="index",
    )
    embeds, rows, latents, values = [], [], [], []
    about: list[dict[str, Any]] = []
    n = 0
    for batch in walk:
        acts_btd, its_embeds = activations_and_embeddings(attached, batch.pixels)
        embeds.append(its_embeds.cpu())
        for part, its_latents in attached.encode_parts(acts_btd):
            levels = image_levels(its_latents, level)
            if n_latents_per_image is not None and n_latents_per_image < levels.shape[1]:
                top = levels.topk(n_latents_per_image, dim=1)
                levels = torch.zeros_like(levels).scatter_(1, top.indices, top.values)
            row, latent = levels.nonzero(as_tuple=True)
            rows.append((row + n + part.start).int().cpu())
            latents.append(latent.int().cpu())
            values.append(levels[row, latent].half().cpu())
        about += [
            {"image_index": int(index), "id": one, "label": int(label)}
            for index, one, label in zip(batch.index, batch.ids, batch.label, strict=True)
        ]
        n += len(batch.ids)
    if n == 0:
        raise ValueError(f"{images.name} gave no readable image; want one or more to search")
    row, latent, value = (torch.cat(parts) for parts in (rows, latents, values))
    order = latent.argsort(stable=True)
    counts = torch.bincount(latent, minlength=attached.d_sae)
    return SearchIndex(
        torch.cat(embeds),
        torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
        row[order],
        value[order],
        pd.DataFrame(about),
        {
            "model_sha256": known_model_fingerprint(attached.model),
            "sae_sha256": known_sae_fingerprint(attached.sae),
            "data_sha256": images.fingerprint(),
            "data_name": images.name,
            "level": level,
            "n_latents_per_image": n_latents_per_image,
        },
    )
