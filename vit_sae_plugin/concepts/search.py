"""Images by concepts, or by another image with concepts changed, beside plain cosine search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vit_sae_plugin.concepts.concept_query import WeightedConcept, parse_query
from vit_sae_plugin.concepts.image_conditioned import activations_and_embeddings, image_levels
from vit_sae_plugin.concepts.neighbors import nearest
from vit_sae_plugin.concepts.search_index import SearchIndex
from vit_sae_plugin.prompt_templates import Template, named_templates

if TYPE_CHECKING:
    from PIL import Image

    from vit_sae_plugin.attached_sae import AttachedSAE

OTHERS = "everything else alike"
_SHOWN_REASONS, _LEAST_REASON = 6, 0.01


@dataclass(frozen=True)
class SearchResult:
    """What was found by concepts, and what plain cosine search finds."""

    question: str
    """What was asked for, in words."""
    by_concepts: pd.DataFrame
    """A row for each image found, the best first (``rank``): ``image_index``, ``id``, ``label``,
    ``score``, and of the plain search, if there is one, ``cosine`` and ``plain_rank``, its place
    there."""
    contributions: pd.DataFrame
    """What each concept adds to the score: the same rows, a column a concept."""
    by_cosine: pd.DataFrame
    """The same of the plain search, with ``concept_rank``; no row where there is none."""
    cosine_contributions: pd.DataFrame
    """What concepts would add to the scores of those."""
    concepts: tuple[WeightedConcept, ...] = field(default=())
    """The concepts of the query."""
    is_by_image: bool = False
    """Whether an image was searched with."""

    @property
    def has_plain_search(self) -> bool:
        """Whether there was something to compare images' embeddings with."""
        return len(self.by_cosine) > 0

    @property
    def n_in_common(self) -> int:
        """Images that both searches found."""
        return len(set(self.by_concepts["image_index"]) & set(self.by_cosine["image_index"]))


@torch.no_grad()
def search_by_concepts(
    attached: AttachedSAE,
    index: SearchIndex,
    query: str,
    names: Mapping[int, str],
    *,
    n: int = 12,
    templates: str | Path | Sequence[Template] | None = None,
) -> SearchResult:
    """Images that show the wanted concepts and not the others.

    An image's score is the sum over concepts of weight times strength. The strength is that of the
    concept's strongest latent there, its activation divided by its largest on any image, so from 0
    to 1. The plain search beside it takes the same sum of text embeddings, and the images of the
    largest cosine with it; concepts asked for by number have no words and are left out of it. There
    is none without words, or where the model has no text tower.

    Args:
        attached: the SAE on its model.
        index: of the images.
        query: as `parse_query` takes it.
        names: latent → its name.
        n: how many images to find.
        templates: prompts around the words; see `named_templates`.

    Raises:
        ValueError: the index is of another model or SAE; the query can't be read.
    """
    index.check_belongs(attached)
    concepts = parse_query(query, names, index.d_sae)
    parts = torch.stack([c.weight * _strength(index, c.latents) for c in concepts], dim=1)
    scores = parts.sum(1)
    text = _text_query(attached, concepts, templates)
    columns = [concept.name for concept in concepts]
    asked = ", ".join(f"{concept.name} {concept.weight:+g}" for concept in concepts)
    return _result(index, asked, scores, text, n, lambda rows: (parts[rows], columns), concepts)


@torch.no_grad()
def search_by_image(
    attached: AttachedSAE,
    index: SearchIndex,
    image: Image.Image,
    names: Mapping[int, str],
    changes: str = "",
    *,
    n: int = 12,
    said: str = "an image",
) -> SearchResult:
    """Images that show what another shows, with more of some concepts and less of others.

    The score is likeness plus the sum over the changed concepts of weight times strength, the
    strength being that of `search_by_concepts`. Likeness is the cosine of the latents'
    strengths, each weighted by how rare the latent is, ``ln(1 + images ÷ images that activate
    it)``, so that what all images show counts little. Latents of the changed concepts are left out
    of it, so that a picture's own red doesn't pull towards red where less of it is wanted. The
    plain search goes by the embedding of the image as it is.

    Args:
        attached: the SAE on its model.
        index: of the images.
        image: what to start from.
        names: latent → its name.
        changes: concepts with weights, as `parse_query` takes them; empty: none.
        n: how many images to find.
        said: what to call the image.

    Raises:
        ValueError: the index is of another model or SAE; the changes can't be read; the image
            activates no latent, and there are no changes.
    """
    index.check_belongs(attached)
    concepts = parse_query(changes, names, index.d_sae) if changes.strip() else ()
    cfg = attached.model.cfg
    pixels = attached.model.require_preprocess()(image)[None].to(cfg.device, cfg.dtype)
    acts_btd, embed = activations_and_embeddings(attached, pixels)
    levels = image_levels(attached.encode(acts_btd), index.info["level"])[0].float().cpu()
    changed = sorted({latent for concept in concepts for latent in concept.latents})
    rarity, scale, norms = _weights(index, changed)
    query = torch.where(scale > 0, levels / scale.clamp(min=1e-30), 0.0).clamp(max=1.0) * rarity
    if not query.any() and not concepts:
        raise ValueError(
            f"{said} activates no latent, so nothing is like it by concepts; want another image, "
            "or concepts"
        )
    likeness = _likeness(index, functional.normalize(query, dim=0), rarity, norms, names)
    wanted = [(c.name, c.weight * _strength(index, c.latents)) for c in concepts]
    scores = torch.stack([part for _, part in (*wanted, *likeness.items())]).sum(0)
    # of what is alike, the named concepts that matter most for what is found
    best = scores.topk(min(n, len(scores))).indices
    adds = {name: float(part[best].mean()) for name, part in likeness.items() if name}
    least = _LEAST_REASON * float(scores[best].abs().mean())
    named = sorted((name for name in adds if adds[name] >= least), key=lambda name: -adds[name])
    n_shown = max(0, _SHOWN_REASONS - len(wanted))
    shown = wanted + [(name, likeness[name]) for name in named[:n_shown]]
    columns = [name for name, _ in shown]
    shown_parts = torch.stack([part for _, part in shown], dim=1) if shown else None

    def contributions(rows: Tensor) -> tuple[Tensor, list[str]]:
        if shown_parts is None:
            return scores[rows, None], [OTHERS]
        rest = scores[rows] - shown_parts[rows].sum(1)
        return torch.cat([shown_parts[rows], rest[:, None]], dim=1), [*columns, OTHERS]

    asked = f"like {said}" + "".join(f", {one.name} {one.weight:+g}" for one in concepts)
    result = _result(index, asked, scores, embed.cpu(), n, contributions, concepts)
    return replace(result, is_by_image=True)


def _strength(index: SearchIndex, latents: Sequence[int]) -> Float[Tensor, " n_images"]:
    """Of each image, how strong the strongest of these latents is."""
    strength = torch.zeros(len(index))
    for latent in latents:
        rows, values = index.entries(latent)
        strength[rows] = torch.maximum(strength[rows], values)
    return strength


def _text_query(
    attached: AttachedSAE,
    concepts: Sequence[WeightedConcept],
    templates: str | Path | Sequence[Template] | None,
) -> Float[Tensor, "1 d_embed"] | None:
    """What plain search looks for; None without words, or without a text tower to read them."""
    worded = [concept for concept in concepts if concept.is_word]
    model = attached.model
    if not worded or model.tower.text_method is None:
        return None
    chosen = named_templates(templates, model.model_name)
    text = model.zero_shot_classifier([concept.name for concept in worded], chosen).float().cpu()
    weights = torch.tensor([concept.weight for concept in worded])
    return functional.normalize((text * weights).sum(1), dim=0)[None]


def _weights(index: SearchIndex, left_out: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Each latent's rarity (0 for those left out) and largest activation; each image's length."""
    counts = index.start.diff()
    latent = torch.repeat_interleave(torch.arange(index.d_sae), counts)
    value = index.value.float()
    scale = torch.zeros(index.d_sae).scatter_reduce_(0, latent, value, "amax")
    rarity = torch.where(counts > 0, torch.log1p(len(index) / counts.clamp(min=1)), 0.0)
    rarity[list(left_out)] = 0
    weighted = value / scale[latent] * rarity[latent]
    squared = torch.zeros(len(index)).index_add_(0, index.image.long(), weighted.square())
    return rarity, scale, squared.sqrt().clamp(min=torch.finfo(torch.float32).tiny)


def _likeness(
    index: SearchIndex, query: Tensor, rarity: Tensor, norms: Tensor, names: Mapping[int, str]
) -> dict[str, Float[Tensor, " n_images"]]:
    """What the latents of each name add to every image's cosine; those without one under ``""``."""
    groups = {"": torch.zeros(len(index))}
    for latent in query.nonzero().flatten().tolist():
        rows, values = index.entries(latent)
        part = groups.setdefault(names.get(latent, ""), torch.zeros(len(index)))
        part[rows] += query[latent] * rarity[latent] * values / norms[rows]
    return groups


def _result(
    index: SearchIndex,
    asked: str,
    scores: Tensor,
    plain_query: Tensor | None,
    n: int,
    contributions: Any,
    concepts: tuple[WeightedConcept, ...],
) -> SearchResult:
    if n < 1:
        raise ValueError(f"n is {n}; want 1 or more images")
    n = min(n, len(index))
    by_score = scores.argsort(descending=True, stable=True)
    values, plain_rank, found = {"score": scores}, {}, by_score[:0]
    if plain_query is not None:
        cosine = values["cosine"] = index.embeds @ plain_query[0]
        plain_rank = {"plain_rank": _ranks(cosine.argsort(descending=True, stable=True))}
        found = nearest(index.embeds, plain_query, n)[1][0]

    def tables(rows: Tensor, columns: dict[str, Tensor]) -> tuple[pd.DataFrame, pd.DataFrame]:
        table = index.images.iloc[rows.numpy()].reset_index(drop=True)
        for name, column in columns.items():
            table[name] = column[rows].numpy()
        table.index = pd.RangeIndex(1, len(rows) + 1, name="rank")
        parts, names = contributions(rows)
        return table, pd.DataFrame(parts.numpy(), index=table.index, columns=names)

    of_concepts = tables(by_score[:n], values | plain_rank)
    of_cosine = tables(found, values | {"concept_rank": _ranks(by_score)})
    return SearchResult(asked, *of_concepts, *of_cosine, concepts)


def _ranks(order: Tensor) -> Tensor:
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(1, len(order) + 1)
    return ranks
