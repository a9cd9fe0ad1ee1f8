"""A tree against the truth of shape scenes: coloured shapes belong below colour or shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.concepts.latent_tree import LatentTree
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean
from vit_sae_plugin.evaluation.concept_masks import PatchCoverage, scene_concept_masks
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.image_concepts import COLORED_SHAPES

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

_KINDS = ("color", "shape", COLORED_SHAPES)
_N_SHUFFLES = 1000


@torch.no_grad()
def score_tree(
    model: HookedViT,
    sae: SAE[Any],
    tree: LatentTree,
    images: Any,
    *,
    min_f1: float = 0.2,
    min_coverage: float = 0.5,
    n_images: int | None = None,
    batch_size_images: int = 32,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> EvaluationReport:
    """Compare a tree with the true hierarchy of shape scenes.

    A latent stands for the colour, shape or coloured shape whose patches it marks best, by F1 of
    "active" against "shows it", if that is at least ``min_f1``. An edge counts if its child
    stands for a coloured shape and its parent for a colour or a shape; it is right if that is the
    child's own. ``chance``: the same with the parents of these edges exchanged at random.

    Args:
        model, sae: what the tree was made from.
        tree: best made on other images than these.
        images: shape scenes.
        min_f1: from which F1 a latent stands for a concept.
        min_coverage: a patch shows a concept if its mask covers this share of it.
        n_images, batch_size_images, n_workers, progress: of the walk.
        seed: of the exchange and the bootstrap.

    Returns:
        Tables ``tree``, one row: ``n_edges``, ``right`` with a 95 % interval over edges, ``chance``
        with the interval of the exchanges; and ``edges``, each one's concepts.

    Raises:
        ValueError: the images aren't shape scenes, or the SAE reads no patches.
    """
    images = open_images(images)
    scene = getattr(images, "scene", None)
    if scene is None:
        raise ValueError(f"{images.name} has no true hierarchy; want shape scenes ('shapes:test')")
    attached = AttachedSAE(model, sae)
    layout = attached.require_patches()
    tokens, grid = layout.positions("patches"), layout.grid
    coverage = PatchCoverage(model.require_preprocess(), grid)
    column: dict[tuple[str, str], int] = {}
    hits: dict[int, Tensor] = {}
    n_active = torch.zeros(attached.d_sae)
    n_shown: dict[int, int] = {}
    walk = attached.walk(
        images,
        batch_size_images=batch_size_images,
        n_images=n_images,
        shuffle=True,
        seed=seed,
        n_workers=n_workers,
        progress=progress,
        description="truth",
    )
    for batch in walk:
        acts = attached.activations(batch.pixels)[:, tokens]
        for part in attached.rows.parts(len(acts), acts.shape[1]):
            latents = attached.encode(acts[part], tree.settings.get("k"))
            active = (latents > 0).float().cpu()
            n_active += active.sum((0, 1))
            for index, of_image in zip(batch.index[part].tolist(), active, strict=True):
                for concept, mask in scene_concept_masks(scene(index)).items():
                    if concept[0] not in _KINDS:
                        continue
                    shown = (coverage(mask) >= min_coverage).flatten()
                    at = column.setdefault(concept, len(column))
                    hits[at] = hits.get(at, 0) + of_image[shown].sum(0)
                    n_shown[at] = n_shown.get(at, 0) + int(shown.sum())
    if not column:
        raise ValueError(f"{images.name} gives no image; want shape scenes to score the tree on")
    concepts, places = list(column), range(len(column))
    shown_by = torch.stack([hits[at] for at in places], 1)
    n_either = n_active[:, None] + torch.tensor([n_shown[at] for at in places])
    f1 = (2 * shown_by / n_either.clamp(min=1)).numpy()
    stands_for = {
        latent: concepts[int(row.argmax())] for latent, row in enumerate(f1) if row.max() >= min_f1
    }
    edges = _edges(tree, stands_for)
    counted = edges[edges["counts"]]
    row: dict[str, float] = {"n_latents_of_a_concept": len(stands_for), "n_edges": len(counted)}
    if len(counted):
        interval = bootstrap_mean(counted["is_right"].astype(float), seed=seed)
        low, high, chance = _exchanged(counted, seed)
        row |= {
            "right": float(interval.mean),
            "right_low": float(interval.low),
            "right_high": float(interval.high),
            "chance": chance,
            "chance_low": low,
            "chance_high": high,
        }
    table = pd.DataFrame([row], index=pd.Index(["tree"], name="what"))
    settings = {
        "images": images.name,
        "n_images": walk.n_seen,
        "min_f1": min_f1,
        **tree.settings,
    }
    return EvaluationReport({"tree": table, "edges": edges}, settings)


def _edges(tree: LatentTree, stands_for: dict[int, tuple[str, str]]) -> pd.DataFrame:
    rows = []
    for latent, parent in tree.table["parent"].dropna().items():
        child_of, parent_of = stands_for.get(int(latent)), stands_for.get(int(parent))
        if child_of is None or parent_of is None:
            continue
        counts = child_of[0] == COLORED_SHAPES and parent_of[0] != COLORED_SHAPES
        rows.append(
            {
                "latent": latent,
                "concept": child_of[1],
                "parent": parent,
                "parent_concept": parent_of[1],
                "counts": counts,
                "is_right": counts and parent_of[1] in child_of[1].split(),
            }
        )
    columns = ["latent", "concept", "parent", "parent_concept", "counts", "is_right"]
    table = pd.DataFrame(rows, columns=columns).set_index("latent")
    return table.astype({"counts": bool, "is_right": bool})


def _exchanged(edges: pd.DataFrame, seed: int) -> tuple[float, float, float]:
    """What edges with exchanged parents get right: bounds and mean over many exchanges."""
    generator = np.random.default_rng(seed)
    words = [set(name.split()) for name in edges["concept"]]
    parents = edges["parent_concept"].to_numpy()
    shares = [
        np.mean([parent in some for parent, some in zip(drawn, words, strict=True)])
        for drawn in (generator.permutation(parents) for _ in range(_N_SHUFFLES))
    ]
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high), float(np.mean(shares))
