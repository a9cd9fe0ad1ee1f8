"""Coarse to fine: a tree of latents, from which are active on the same patches.

A latent is under another if the other is active almost wherever it is, but not the reverse. A
parent that is active almost everywhere would be above all, so it must also be more active where the
child is than elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.atomic_files import write_text_atomically
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.fingerprints import known_sae_fingerprint, short

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

TREE_FILE = "tree.json"
MOST_LATENTS = 8192
_FORMAT, _VERSION = "vit-sae latent tree", 1
_COLUMNS = ["parent", "p_parent", "p_child", "lift", "n_active"]


@dataclass(frozen=True)
class LatentTree:
    """Each latent's parent, for those that have one."""

    table: pd.DataFrame
    """A row for each latent that was looked at: its ``parent`` (missing: none), ``p_parent``, the
    share of its tokens at which the parent is active, ``p_child``, the reverse, ``lift``, how many
    times as often the parent is active there as anywhere, and ``n_active``, its own tokens."""
    sae_sha256: str
    """Hash of the SAE whose latents they are."""
    settings: dict[str, Any]
    """Thresholds, and how much was looked at."""

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """Latent → its children, the most frequent first; latents without any have no entry."""
        has = self.table[self.table["parent"].notna()].sort_values("n_active", ascending=False)
        grouped = has.groupby(has["parent"].astype(int))
        return {int(parent): [int(i) for i in some.index] for parent, some in grouped}

    @cached_property
    def roots(self) -> list[int]:
        """The latents with children and no parent, those with most descendants first."""
        alone = self.table["parent"].isna()
        roots = [latent for latent in self.children if alone[latent]]
        return sorted(roots, key=lambda latent: (-self.n_descendants(latent), latent))

    def n_descendants(self, latent: int) -> int:
        """How many latents are below one, at any depth."""
        return sum(1 + self.n_descendants(child) for child in self.children.get(latent, ()))

    def save(self, folder: str | Path) -> Path:
        """Write ``tree.json`` into a folder: beside an atlas, the report finds it."""
        path = Path(folder) / TREE_FILE
        rows = {
            str(latent): [None if pd.isna(value) else value for value in row]
            for latent, *row in self.table[_COLUMNS].astype(object).itertuples()
        }
        described = {
            "format": _FORMAT,
            "version": _VERSION,
            "sae_sha256": self.sae_sha256,
            "settings": self.settings,
            "columns": _COLUMNS,
            "latents": rows,
        }
        write_text_atomically(path, json.dumps(described, default=float) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | Path, sae_sha256: str) -> LatentTree:
        """Read what ``save`` wrote.

        Raises:
            ValueError: there is no tree, or a damaged one, or that of another SAE.
        """
        path = Path(folder) / TREE_FILE
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            good = (described["format"], described["version"]) == (_FORMAT, _VERSION)
            if not good:
                raise ValueError(f"format {described['format']!r} {described['version']!r}")
            rows = {int(latent): row for latent, row in described["latents"].items()}
            table = pd.DataFrame.from_dict(rows, orient="index", columns=_COLUMNS)
            table = _typed(table)
            settings, found = dict(described["settings"]), str(described["sae_sha256"])
        except FileNotFoundError:
            raise ValueError(f"there is no {path}; make it by latent_tree(…).save(…)") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} holds no tree of latents: {error!r}") from None
        if found != sae_sha256:
            raise ValueError(
                f"the tree in {path} is of the SAE {short(found)}; want a tree of this one, "
                f"{short(sae_sha256)}"
            )
        parents = set(table["parent"].dropna().astype(int))
        if not parents <= set(table.index):
            raise ValueError(f"{path} holds no tree of latents: a parent isn't among them")
        if not _falls(table):
            raise ValueError(f"{path} holds no tree of latents: a parent is rarer than its child")
        return cls(table, found, settings)


@torch.no_grad()
def latent_tree(
    model: HookedViT,
    sae: SAE[Any],
    images: Any,
    *,
    latents: Any = None,
    k: int | None = None,
    min_p_parent: float = 0.7,
    max_p_child: float = 0.5,
    min_lift: float = 2.0,
    min_active: int = 50,
    n_images: int | None = None,
    batch_size_images: int = 32,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> LatentTree:
    """Build the tree from one pass over images.

    Of several possible parents the most specific is taken, the one active least often.

    Args:
        model: the model that the SAE reads.
        sae: any SAELens SAE.
        images: an image source, or what ``open_images`` makes one of.
        latents: the latents to look at, at most 8,192. None: all.
        k: of each token only the k largest latents count as active: a level of a Matryoshka SAE,
            which otherwise keeps all that are positive. None: as the SAE has it.
        min_p_parent: the parent is active on at least this share of the child's tokens.
        max_p_child: and the child on at most this share of the parent's.
        min_lift: the parent is at least so many times as frequent there as anywhere.
        min_active: latents active on fewer tokens have no place in the tree.
        n_images: how many images to use, drawn at random; None: all.
        batch_size_images, n_workers, progress: of the walk.
        seed: of the choice of images.

    Raises:
        ValueError: too many latents, or unknown ones, or a threshold out of range.
    """
    for name, value in (("min_p_parent", min_p_parent), ("max_p_child", max_p_child)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}; want a share above 0, up to 1")
    attached = AttachedSAE(model, sae)
    chosen = _chosen(latents, attached.d_sae)
    counts = _pairs(
        attached,
        open_images(images),
        chosen,
        k,
        batch_size_images=batch_size_images,
        n_images=n_images,
        shuffle=True,
        seed=seed,
        n_workers=n_workers,
        progress=progress,
        description="tree",
    )
    settings = {
        "k": k,
        "min_p_parent": min_p_parent,
        "max_p_child": max_p_child,
        "min_lift": min_lift,
        "min_active": min_active,
        "n_tokens": counts.n_tokens,
    }
    table = parents_of(
        counts.both.numpy(),
        counts.n_tokens,
        min_p_parent=min_p_parent,
        max_p_child=max_p_child,
        min_lift=min_lift,
        min_active=min_active,
    )
    numbers = chosen.numpy()
    known = table["parent"].notna()
    table.loc[known, "parent"] = numbers[table.loc[known, "parent"].astype(int)]
    table.index = pd.Index(numbers, name="latent")
    return LatentTree(table, known_sae_fingerprint(sae), settings)


def parents_of(
    both: Float[np.ndarray, "latents latents"],
    n_tokens: int,
    *,
    min_p_parent: float,
    max_p_child: float,
    min_lift: float,
    min_active: int,
) -> pd.DataFrame:
    """Each latent's parent, from the numbers of tokens at which two latents are both active.

    Args:
        both: those numbers; on the diagonal how often each is active.
        n_tokens: tokens in all.
        min_p_parent, max_p_child, min_lift, min_active: as for ``latent_tree``.
    """
    n_active = both.diagonal().astype(float)
    safe = np.maximum(n_active, 1)
    parent, p_parent = np.full(len(both), -1), np.full(len(both), np.nan)
    p_child, lift = p_parent.copy(), p_parent.copy()
    shown = n_active >= min_active
    for child in np.flatnonzero(shown):
        of_child, of_parent = both[child] / safe[child], both[child] / safe
        times = of_child * n_tokens / safe
        fits = shown & (n_active > n_active[child]) & (of_child >= min_p_parent)
        fits &= (of_parent <= max_p_child) & (times >= min_lift)
        if not fits.any():
            continue
        best = min(np.flatnonzero(fits), key=lambda at: (n_active[at], -of_child[at], at))
        parent[child] = best
        p_parent[child], p_child[child], lift[child] = of_child[best], of_parent[best], times[best]
    table = pd.DataFrame(
        {
            "parent": np.where(parent < 0, np.nan, parent),
            "p_parent": p_parent,
            "p_child": p_child,
            "lift": lift,
            "n_active": n_active,
        }
    )
    return _typed(table)


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    numbers = table.astype(dict.fromkeys(("p_parent", "p_child", "lift"), float))
    return numbers.astype({"parent": "Int64", "n_active": "int64"}).rename_axis("latent")


def _falls(table: pd.DataFrame) -> bool:
    """Whether every parent is active more often than its child, so that there is no circle."""
    has = table[table["parent"].notna()]
    return bool(
        (table["n_active"].loc[has["parent"].astype(int)].to_numpy() > has["n_active"]).all()
    )


@dataclass
class _PairCounts:
    both: Tensor
    n_tokens: int


def _chosen(latents: Any, d_sae: int) -> Tensor:
    chosen = torch.arange(d_sae) if latents is None else torch.as_tensor(sorted(set(latents)))
    if len(chosen) == 0 or int(chosen.min()) < 0 or int(chosen.max()) >= d_sae:
        raise ValueError(f"latents are {latents}; want some from 0 to {d_sae - 1}")
    if len(chosen) > MOST_LATENTS:
        raise ValueError(
            f"there are {len(chosen)} latents; want at most {MOST_LATENTS}, for pairs are counted: "
            "pass latents=, such as the named ones, or the most frequent"
        )
    return chosen


def _pairs(
    attached: AttachedSAE, images: Any, chosen: Tensor, k: int | None, **walk: Any
) -> _PairCounts:
    """At how many tokens each pair of latents is active; patches alone, if the SAE reads any."""
    counts = _PairCounts(torch.zeros(len(chosen), len(chosen), dtype=torch.float64), 0)
    has_patches = attached.layout.has("patch")
    tokens = attached.layout.role_positions("patch") if has_patches else slice(None)
    for batch in attached.walk(images, **walk):
        acts_btd = attached.activations(batch.pixels)[:, tokens]
        for part in attached.rows.parts(len(acts_btd), acts_btd.shape[1]):
            latents = attached.encode(acts_btd[part], k).flatten(0, 1)
            active = (latents[:, chosen.to(latents.device)] > 0).float()
            counts.both += (active.T @ active).double().cpu()
            counts.n_tokens += len(active)
    return counts
