"""Route (b): how the image embedding moves when a latent is raised where it is active."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from vit_sae_plugin.analysis.atlas.same_sae import check_same_sae
from vit_sae_plugin.attached_sae import UpperRun
from vit_sae_plugin.concepts.concept_directions import ConceptDirections
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.datasets.image_lookup import images_by_index
from vit_sae_plugin.fingerprints import known_model_fingerprint, known_sae_fingerprint

if TYPE_CHECKING:
    from vit_sae_plugin.analysis import LatentAtlas
    from vit_sae_plugin.attached_sae import AttachedSAE

_CONDITIONS_AT_ONCE = 64


@torch.no_grad()
def measured_shift(
    attached: AttachedSAE,
    atlas: LatentAtlas,
    images: Any,
    *,
    latents: Sequence[int] | None = None,
    factor: float = 2.0,
    n_reference_images: int | None = None,
    aggregation: str | None = None,
    progress: bool = False,
) -> ConceptDirections:
    """Raise each latent in the tokens where it is active, and see where the embedding goes.

    On a latent's reference images its activations are multiplied, the reconstruction's change is
    added to what the model holds (so nothing else changes), and the blocks above run on. The
    direction is the mean over those images of the change of the embedding, both of length 1.
    The blocks below run once an image, whatever the number of latents it shows.

    Args:
        attached: the SAE on its model.
        atlas: of this SAE; its reference images are used.
        images: the source that was analysed, or what ``open_images`` takes.
        latents: which to look at; None: all that have reference images.
        factor: what activations are multiplied with.
        n_reference_images: how many of each latent's; None: all that the atlas has.
        aggregation: under which rule; None: the atlas's first.
        progress: show a progress bar.

    Raises:
        ValueError: the atlas is of another SAE; the images are others; the factor is 1.
    """
    check_same_sae(atlas, attached.sae)
    if factor == 1:
        raise ValueError("factor is 1, which changes nothing; want more to raise, less to lower")
    chosen = range(attached.d_sae) if latents is None else map(atlas.check_latent, latents)
    table = atlas.references[aggregation or atlas.default_aggregation].image
    latents_of: dict[int, list[int]] = {}
    for latent in chosen:
        for index in table[latent][:n_reference_images].tolist():
            if index >= 0:
                latents_of.setdefault(index, []).append(latent)
    source = open_images(images)
    if source.fingerprint() != atlas.info.data_sha256:
        raise ValueError(
            f"the atlas is about {atlas.info.data_name}, but images is {source.name}; want the "
            "source that was analysed, for its reference images"
        )
    total = torch.zeros(attached.d_sae, attached.model.cfg.d_embed)
    n = torch.zeros(attached.d_sae)
    preprocess = attached.model.require_preprocess()
    cfg = attached.model.cfg
    rows = attached.rows.decoder_matrix()
    found = images_by_index(source, sorted(latents_of), missing={})
    bar = tqdm(found, total=len(latents_of), desc="shifts", unit=" images", disable=not progress)
    for index, picture in bar:
        pixels = preprocess(picture)[None].to(cfg.device, cfg.dtype)
        raised = torch.tensor(latents_of[index])
        shifts = _shifts(attached, UpperRun(attached, pixels), raised, factor, rows)
        total.index_add_(0, raised, shifts.cpu())
        n.index_add_(0, raised, torch.ones(len(raised)))
    return ConceptDirections(
        "measured-shift",
        total / n.clamp(min=1)[:, None],
        model_sha256=known_model_fingerprint(attached.model),
        sae_sha256=known_sae_fingerprint(attached.sae),
        n_effective=n,
    )


def _shifts(
    attached: AttachedSAE, run: UpperRun, raised: Tensor, factor: float, rows: Tensor | None
) -> Float[Tensor, "raised d_embed"]:
    """Change of one image's embedding as each of these latents is raised on its own."""
    latents = attached.encode(run.acts_btd)[0]  # [token, d_sae]
    before = functional.normalize(run.output(run.target_btd).float(), dim=-1)
    found = []
    for some in raised.to(latents.device).split(_CONDITIONS_AT_ONCE):
        more = latents[:, some].T * (factor - 1)  # [raised, token]
        if rows is None:
            change = torch.stack(
                [
                    _decoded(attached, latents, one, at)
                    for one, at in zip(more, some.tolist(), strict=True)
                ]
            )
        else:
            change = more[..., None] * rows[some][:, None]
        acts_btd = run.target_btd + change.to(run.target_btd)
        found.append(functional.normalize(run.output(acts_btd).float(), dim=-1) - before)
    return torch.cat(found)


def _decoded(attached: AttachedSAE, latents: Tensor, more: Tensor, latent: int) -> Tensor:
    """Change of the reconstruction, for decoders that are no matrix."""
    edited = latents.clone()
    edited[:, latent] += more
    return attached.decode(edited[None])[0] - attached.decode(latents[None])[0]
