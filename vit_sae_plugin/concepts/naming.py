"""Names for latents: the clearest word of each, where it is clear enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from vit_sae_plugin.analysis import LatentAtlas, LatentName, analyze
from vit_sae_plugin.analysis.atlas.same_sae import check_same_sae
from vit_sae_plugin.concepts.calibration import NamingThreshold, threshold_against_null
from vit_sae_plugin.concepts.candidates import Candidates, rank_words
from vit_sae_plugin.concepts.concept_directions import ROUTES, ConceptDirections, Route
from vit_sae_plugin.concepts.controls import random_control
from vit_sae_plugin.concepts.direct_route import direct
from vit_sae_plugin.concepts.image_conditioned import image_conditioned
from vit_sae_plugin.concepts.measured_shift import measured_shift
from vit_sae_plugin.concepts.vocabulary import Vocabulary
from vit_sae_plugin.concepts.vocabulary_sources import read_vocabulary
from vit_sae_plugin.concepts.word_embeddings import WordEmbeddings, embed_words
from vit_sae_plugin.fingerprints import known_sae_fingerprint

if TYPE_CHECKING:
    from vit_sae_plugin.attached_sae import AttachedSAE
    from vit_sae_plugin.prompt_templates import Template

EDITOR = "vit-sae name"
"""The editor of names that this package gave: those of all others stay."""


@dataclass(frozen=True)
class Naming:
    """The words of all latents, and which of them are clear enough to be names."""

    route: Route
    """How the latents' directions were found."""
    candidates: Candidates
    """Several words for each latent, with their scores."""
    threshold: NamingThreshold
    """From which clearness on a latent is named."""
    sae_sha256: str
    """Hash of the SAE."""

    @property
    def is_named(self) -> torch.Tensor:
        """Of each latent, whether its best word is clear. One that beats no rival never is."""
        clearness = self.candidates.clearness[:, 0]
        return (clearness >= self.threshold.clearness) & (clearness > 0)

    @property
    def names(self) -> dict[int, str]:
        """Latent → its name, for those that have one."""
        named = self.is_named.nonzero().flatten().tolist()
        return {latent: self.candidates.best_word(latent) for latent in named}

    def table(self) -> pd.DataFrame:
        """The candidates of all latents, with a column ``is_name``."""
        table = self.candidates.table()
        is_first = table.index.get_level_values("rank") == 1
        named = self.is_named.repeat_interleave(self.candidates.n).numpy()
        return table.assign(is_name=is_first & named)

    def latent_names(self, now: datetime | None = None) -> dict[int, LatentName]:
        """The names as an atlas keeps them: with score, source, and what gave them."""
        edited = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
        source = f"{self.route}, vocabulary {self.candidates.vocabulary.name!r}"
        return {
            latent: LatentName(
                name,
                score=round(float(self.candidates.score[latent, 0]), 4),
                source=source,
                editor=EDITOR,
                edited=edited,
            )
            for latent, name in self.names.items()
        }


def name_latents(
    attached: AttachedSAE,
    images: Any,
    vocabulary: str | Path | Vocabulary | WordEmbeddings,
    *,
    route: Route = "image-conditioned",
    atlas: LatentAtlas | None = None,
    threshold: NamingThreshold | float | None = None,
    false_naming_rate: float = 0.01,
    templates: str | Path | Sequence[Template] | None = None,
    n_candidates: int = 5,
    n_images: int | None = None,
    batch_size_images: int = 64,
    n_workers: int = 0,
    cache: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
    **settings: Any,
) -> Naming:
    """Name the latents of an SAE with the words of a vocabulary.

    Args:
        attached: the SAE on its model, which has a text tower.
        images: what latents are named by; ``measured-shift`` wants the source that was analysed.
        vocabulary: a source that `read_vocabulary` knows, words, or embedded ones.
        route: ``"image-conditioned"`` (`image_conditioned`), ``"measured-shift"``
            (`measured_shift`) or ``"direct"`` (`direct`).
        atlas: of this SAE; wanted by ``measured-shift``.
        threshold: from which clearness on a latent is named, such as
            `threshold_for_precision` gives where some latents' truth is known. None: random
            directions are named in the same way, and so few of them may pass as
            ``false_naming_rate`` says.
        false_naming_rate: share of random directions that may be named.
        templates: prompts around the words; see `embed_words`.
        n_candidates: words kept for each latent.
        n_images: how many images to use; None: all.
        batch_size_images, n_workers: as elsewhere.
        cache: a folder for the words' embeddings.
        seed: of images drawn, and of the random directions.
        progress: show progress bars.
        settings: of the route, such as ``level="max"`` or ``kind="point"``.

    Raises:
        ValueError: an unknown route, words or model that don't do, or what the route says.
    """
    if route not in ROUTES:
        raise ValueError(f"route is {route!r}; want one of {', '.join(ROUTES)}")
    if atlas is not None:
        check_same_sae(atlas, attached.sae)
    if isinstance(vocabulary, WordEmbeddings):
        words = vocabulary
    else:
        words = embed_words(
            attached.model,
            read_vocabulary(vocabulary),
            templates,
            cache=cache,
            progress=progress,
        )
    walking: dict[str, Any] = {
        "batch_size_images": batch_size_images,
        "n_workers": n_workers,
        "progress": progress,
    }

    def directions(of: AttachedSAE, its_atlas: Callable[[], LatentAtlas]) -> ConceptDirections:
        if route == "direct":
            return direct(of, images=images, seed=seed, **settings)
        if route == "image-conditioned":
            return image_conditioned(
                of, images, n_images=n_images, seed=seed, **walking, **settings
            )
        return measured_shift(of, its_atlas(), images, progress=progress, **settings)

    def given_atlas() -> LatentAtlas:
        if atlas is None:
            raise ValueError(
                "route is 'measured-shift', which needs an atlas for its reference images; make "
                "one with analyze"
            )
        return atlas

    candidates = rank_words(directions(attached, given_atlas), words, n_candidates)
    if threshold is None:
        control = random_control(attached, images, seed=seed)

        def control_atlas() -> LatentAtlas:
            given = given_atlas()
            rules = [given.default_aggregation]
            n = given.info.n_reference_images
            return analyze(
                control.model,
                control.sae,
                images,
                source=control.source,
                aggregations=rules,
                n_reference_images=n,
                **walking,
            )

        null = rank_words(directions(control, control_atlas), words, 1)
        active = null.clearness[:, 0]
        threshold = threshold_against_null(active.numpy(), false_naming_rate)
    elif not isinstance(threshold, NamingThreshold):
        threshold = NamingThreshold(float(threshold), "given", 0)
    return Naming(route, candidates, threshold, known_sae_fingerprint(attached.sae))


def keep_names(atlas: LatentAtlas, naming: Naming) -> dict[str, int]:
    """Put names into an atlas, and into its folder if it has one; see `merge_names`.

    Returns:
        How many latents are ``named`` now by this naming, how many entries by hand were ``kept``,
        and how many earlier names were ``removed``.

    Raises:
        ValueError: the names are of another SAE's latents.
    """
    if naming.sae_sha256 != atlas.info.sae_sha256:
        raise ValueError("these names are of another SAE's latents; want the atlas's own SAE")
    merged, counts = merge_names(atlas.names, naming)
    atlas.set_names(merged)
    return counts


def merge_names(
    names: Mapping[int, LatentName], naming: Naming
) -> tuple[dict[int, LatentName], dict[str, int]]:
    """Earlier names with new ones put in.

    Names and notes that anybody else wrote stay as they are, also over a new name. Names that an
    earlier naming gave are replaced, or taken away where they are no longer clear.

    Returns:
        The names, and the counts that `keep_names` returns.
    """
    by_hand = {latent: name for latent, name in names.items() if name.editor != EDITOR}
    new = {latent: name for latent, name in naming.latent_names().items() if latent not in by_hand}
    gone = names.keys() - by_hand.keys() - new.keys()
    counts = {"named": len(new), "kept": len(by_hand), "removed": len(gone)}
    return {**new, **by_hand}, counts
