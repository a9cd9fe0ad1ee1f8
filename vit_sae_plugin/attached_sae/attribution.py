"""Which latents, in which patches, made a number that the model computes.

Three ways to ask, with the SAE's error term kept, so that the number explained is the model's own:

- *ablation*: silence one latent in one token and see how far the number falls. Exact, the
  reference for the others, and one run of the upper blocks for each active latent and token.
- *gradient*: activation × gradient; one backward pass.
- *integrated gradients* (Sundararajan et al. 2017, arXiv 1703.01365): the gradient's mean on the
  way from silent latents to the actual ones; the attributions sum to the difference that silencing
  all latents makes, up to the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.attached_sae.upper_run import UpperRun

if TYPE_CHECKING:
    from vit_sae_plugin.attached_sae.attached_sae import AttachedSAE
    from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

Score: TypeAlias = Callable[[Tensor], Tensor]
"""From the model's output ``[n, d_embed]`` to one number for each, ``[n]``."""

Method = Literal["gradient", "integrated_gradients", "ablation"]
METHODS: tuple[str, ...] = get_args(Method)

_ACTS_VALUES = 2**25
"""Activations held at a time while many conditions run."""


@dataclass(frozen=True)
class Attribution:
    """How much each active latent, in each token of one image, adds to a number."""

    method: str
    """How it was found."""
    score: float
    """The number itself."""
    token: np.ndarray
    """Token of each active latent, among those that the SAE reads."""
    latent: np.ndarray
    """Its index."""
    activation: np.ndarray
    """How active it is there."""
    value: np.ndarray
    """Its part in the number, in the number's unit; positive: it raises it."""
    layout: TokenLayout
    """Which token is which patch."""

    @property
    def table(self) -> pd.DataFrame:
        """A row for each active latent and token, the largest parts first (of either sign)."""
        place = self.layout.row_and_column.numpy()[self.token]
        table = pd.DataFrame(
            {
                "latent": self.latent,
                "token": self.token,
                "row": place[:, 0],
                "column": place[:, 1],
                "activation": self.activation,
                "attribution": self.value,
            }
        )
        order = np.argsort(-np.abs(self.value), kind="stable")
        return table.iloc[order].reset_index(drop=True)

    @property
    def by_latent(self) -> pd.DataFrame:
        """A row for each active latent: its parts in all tokens added up, the largest first."""
        table = self.table.groupby("latent").agg(
            attribution=("attribution", "sum"),
            activation=("activation", "sum"),
            n_tokens=("token", "size"),
        )
        return table.iloc[np.argsort(-table["attribution"].abs().to_numpy(), kind="stable")]

    def on_grid(self, latent: int | None = None) -> Float[np.ndarray, "row column"]:
        """The parts on the patch grid: of one latent, or of all together. NaN: not read."""
        chosen = slice(None) if latent is None else self.latent == latent
        tokens = np.zeros(len(self.layout))
        np.add.at(tokens, self.token[chosen], self.value[chosen])
        return self.layout.on_grid(torch.from_numpy(tokens)).numpy()

    def __repr__(self) -> str:
        return (
            f"Attribution({self.method}: {len(self.value)} active latents in tokens, of "
            f"{len(np.unique(self.latent))} latents, make a score of {self.score:.4g})"
        )


def attribute(
    attached: AttachedSAE,
    pixels: Float[Tensor, "1 3 height width"] | UpperRun,
    score: Score,
    method: Method = "gradient",
    *,
    n_steps: int = 16,
    batch_size_conditions: int = 64,
) -> Attribution:
    """Which latents, in which tokens, made a number.

    Args:
        attached: the SAE on its model.
        pixels: one preprocessed image; or one that has been run up to the SAE already.
        score: from the model's output ``[n, d_embed]`` to one number for each. A class's logit:
            ``lambda embeds: normalize(embeds) @ classifier[:, cat]``, see
            ``zero_shot_score``.
        method: ``"gradient"``, ``"integrated_gradients"`` or ``"ablation"``; see the module.
        n_steps: of integrated gradients (the midpoint rule).
        batch_size_conditions: ablations that run together.

    Raises:
        ValueError: more than one image; an unknown method; a score that is not one number each.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; want one of {', '.join(METHODS)}")
    n_images = pixels.n_images if isinstance(pixels, UpperRun) else len(pixels)
    if n_images != 1:
        raise ValueError(f"pixels holds {n_images} images; want one")
    if n_steps < 1 or batch_size_conditions < 1:
        raise ValueError(
            f"n_steps is {n_steps} and batch_size_conditions {batch_size_conditions}; want 1 or "
            "more of each"
        )
    run = pixels if isinstance(pixels, UpperRun) else UpperRun(attached, pixels)
    with torch.no_grad():
        latents = attached.encode(run.acts_btd)
        original = _scores(run, score, run.target_btd).item()
    batch, token, latent = latents.nonzero(as_tuple=True)
    if method == "ablation":
        value = _ablated(attached, run, score, latents, batch_size_conditions)
    else:
        value = _gradients(attached, run, score, latents, 1 if method == "gradient" else n_steps)
        value = value[batch, token, latent]
    return Attribution(
        method=method,
        score=original,
        token=token.cpu().numpy(),
        latent=latent.cpu().numpy(),
        activation=latents[batch, token, latent].float().cpu().numpy(),
        value=value.float().cpu().numpy(),
        layout=attached.layout,
    )


def zero_shot_score(
    classifier: Float[Tensor, "d_embed n_classes"], label: int, logit_scale: float = 1.0
) -> Score:
    """A class's zero-shot logit, for ``attribute``.

    Args:
        classifier: as ``HookedViT.zero_shot_classifier`` gives it.
        label: the class.
        logit_scale: factor on the cosine, such as ``model.logit_scale``.

    Raises:
        ValueError: there is no such class.
    """
    if not 0 <= label < classifier.shape[1]:
        raise ValueError(f"label is {label}; want 0 to {classifier.shape[1] - 1}")

    def score(embeds: Float[Tensor, "n d_embed"]) -> Float[Tensor, " n"]:
        unit = torch.nn.functional.normalize(embeds, dim=-1)
        return logit_scale * (unit @ classifier[:, label].to(unit))

    return score


def _scores(run: UpperRun, score: Score, acts_btd: Tensor) -> Float[Tensor, " n"]:
    result = score(run.output(acts_btd))
    if not isinstance(result, Tensor) or result.shape != (len(acts_btd),):
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"the score is {shape}; want a tensor of {len(acts_btd)} numbers")
    return result


def _gradients(
    attached: AttachedSAE, run: UpperRun, score: Score, latents: Tensor, n_steps: int
) -> Float[Tensor, "1 token d_sae"]:
    """Activation × the gradient's mean over ``n_steps`` midpoints from silence to the latents.

    With one step the gradient is that at the latents themselves.
    """
    error = run.target_btd - _decoded(attached, run, latents).detach()
    total = torch.zeros_like(latents)
    for step in range(n_steps):
        share = 1.0 if n_steps == 1 else (step + 0.5) / n_steps
        with torch.enable_grad():
            scaled = (share * latents).detach().requires_grad_()
            acts_btd = error + _decoded(attached, run, scaled)
            (gradient,) = torch.autograd.grad(_scores(run, score, acts_btd).sum(), scaled)
        total += gradient
    return latents * total / n_steps


@torch.no_grad()
def _ablated(
    attached: AttachedSAE,
    run: UpperRun,
    score: Score,
    latents: Tensor,
    batch_size: int,
) -> Float[Tensor, " active"]:
    """How far the score falls when one latent is silenced in one token, for each in turn."""
    original = _scores(run, score, run.target_btd)
    clean = _decoded(attached, run, latents)
    _, token, latent = latents.nonzero(as_tuple=True)
    falls = []
    batch_size = max(1, min(batch_size, _ACTS_VALUES // clean.numel()))
    for tokens, ones in zip(token.split(batch_size), latent.split(batch_size), strict=True):
        # only one token's latents differ: decode those rows, and put them into copies of the rest
        rows = latents[0, tokens]
        rows[torch.arange(len(ones)), ones] = 0
        acts_btd = run.target_btd.repeat(len(ones), 1, 1)
        decoded = _decoded_rows(attached, run, rows, tokens)
        change = (decoded - clean[0, tokens]).to(acts_btd)
        acts_btd[torch.arange(len(ones)), tokens] += change
        falls.append(original - _scores(run, score, acts_btd))
    return torch.cat(falls) if falls else latents.new_zeros(0)


def _decoded(attached: AttachedSAE, run: UpperRun, latents: Tensor) -> Tensor:
    """The reconstruction of other latents of the same image, in the model's precision."""
    if attached.rows.keeps_state:
        attached.encode(run.acts_btd)
    return attached.decode(latents).to(run.target_btd)


def _decoded_rows(attached: AttachedSAE, run: UpperRun, rows: Tensor, tokens: Tensor) -> Tensor:
    """The reconstruction of single rows of latents, each in the place of its token."""
    if attached.rows.keeps_state:
        attached.encode(run.acts_btd[0, tokens])
    return attached.decode(rows).to(run.target_btd)
