"""Route (c): a latent's decoder row, taken straight into the joint space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.concepts.concept_directions import ConceptDirections
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.fingerprints import known_model_fingerprint, known_sae_fingerprint
from vit_sae_plugin.hooked_vit.hook_names import layer_of

if TYPE_CHECKING:
    from vit_sae_plugin.attached_sae import AttachedSAE

DirectKind = Literal["direction", "point", "projection", "linearized"]
_ROWS_AT_ONCE = 256
_STEP = 0.05
"""Length of the step that takes the place of a derivative, as a share of a token's norm."""


@torch.no_grad()
def direct(
    attached: AttachedSAE,
    kind: DirectKind | None = None,
    *,
    images: Any = None,
    n_images: int = 256,
    seed: int = 0,
) -> ConceptDirections:
    """Each latent's decoder row in the joint space.

    - ``direction`` (of an SAE of image embeddings, the default there): the row itself, its scaling
      undone. Exact.
    - ``point``: the row plus the mean of the SAE's training embeddings (MSAE, arXiv 2502.20578,
      section 5), compared with words that aren't centred.
    - ``projection`` (inside the tower, the default there): what the head makes of the row alone,
      less what it makes of nothing: final norm and projection, as the logit lens does. No images
      are needed. It leaves out all blocks above the SAE.
    - ``linearized``: how the embedding changes along the row, added to all tokens that the SAE
      reads, at the mean activations of ``images``. For SAEs of a block's output.

    Inside the tower none of them is exact; others have reported that directions from there, read
    in the joint space as they are, name latents badly. Take another route where there is one.

    Args:
        attached: the SAE on its model.
        kind: which; None: the default of the SAE's place.
        images: for ``linearized``, images to take the mean of.
        n_images: how many of them.
        seed: of their draw.

    Raises:
        ValueError: the kind doesn't go with the SAE's place; its decoder is no matrix; the model
            pools otherwise than by class token or mean; images are missing.
    """
    rows = attached.rows.decoder_matrix()
    if rows is None:
        raise ValueError(
            "this SAE's decoder isn't a matrix (it normalises each row), so its latents have no "
            "direction of their own; want --route image-conditioned or measured-shift"
        )
    rows = rows.float()
    hook = attached.hook_name_out
    is_joint = hook == "hook_image_embed"
    kind = kind or ("direction" if is_joint else "projection")
    if kind not in ("direction", "point", "projection", "linearized"):
        raise ValueError(f"kind is {kind!r}; want direction, point, projection or linearized")
    if is_joint != (kind in ("direction", "point")):
        wanted = "direction or point" if is_joint else "projection or linearized"
        raise ValueError(f"kind is {kind!r}, but the SAE is on {hook}; want {wanted}")
    if kind == "direction":
        found = rows
    elif kind == "point":
        statistics = attached.rows.statistics
        if statistics is None:
            raise ValueError(
                "kind is 'point', but this SAE has no mean of its training embeddings; want "
                "'direction'"
            )
        found = rows + statistics.mean.to(rows)
    elif kind == "projection":
        found = _projected(attached, rows)
    else:
        found = _linearized(attached, rows, images, n_images, seed)
    return ConceptDirections(
        "direct",
        found.cpu(),
        model_sha256=known_model_fingerprint(attached.model),
        sae_sha256=known_sae_fingerprint(attached.sae),
        is_point=kind == "point",
    )


def _projected(
    attached: AttachedSAE, rows: Float[Tensor, "d_sae d_model"]
) -> Float[Tensor, "d_sae d_embed"]:
    model = attached.model
    if rows.shape[1] != model.cfg.d_model:
        raise ValueError(
            f"{attached.hook_name_out} is {rows.shape[1]} wide and not the residual stream, which "
            "is what the head reads; want another route"
        )
    nothing = model.embed_residual(torch.zeros_like(rows[None, :1]), per_token=True)[0]
    parts = [
        model.embed_residual(some[None], per_token=True)[0] for some in rows.split(_ROWS_AT_ONCE)
    ]
    return torch.cat(parts).float() - nothing.float()


def _linearized(
    attached: AttachedSAE, rows: Tensor, images: Any, n_images: int, seed: int
) -> Float[Tensor, "d_sae d_embed"]:
    """A central difference, small beside the stream."""
    model, hook = attached.model, attached.hook_name_out
    layer = layer_of(hook)
    if layer is None or not hook.endswith(".hook_resid_post"):
        raise ValueError(
            f"kind is 'linearized' and the SAE's hook {hook}; want the output of a block"
        )
    if images is None:
        raise ValueError("kind is 'linearized' and images None; want images, for mean activations")
    total, n = None, 0
    walk = attached.walk(open_images(images), n_images=n_images, shuffle=True, seed=seed)
    for batch in walk:
        part = model(batch.pixels, stop_at_layer=layer + 1).float()
        total = part.sum(0) if total is None else total + part.sum(0)
        n += len(part)
    if total is None:
        raise ValueError(f"{walk.images.name} gave no readable image; want one or more")
    mean = (total / n)[None]
    step = _STEP * mean.norm(dim=-1).mean()
    found = []
    for some in rows.split(_ROWS_AT_ONCE // 4):
        along = some / some.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(some.dtype).tiny)
        acts = attached.source.select(model.cfg, mean)
        change = (step * along)[:, None].expand(-1, acts.shape[1], -1)
        stream = mean.expand(len(some), -1, -1)
        up, down = (
            model(
                attached.source.replace(model.cfg, stream, acts + sign * change),
                start_at_layer=layer + 1,
            )
            for sign in (1, -1)
        )
        found.append((up - down).float())
    return torch.cat(found)
