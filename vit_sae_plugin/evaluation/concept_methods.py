"""What the concept suite scores: an SAE's latents, and the controls that they are set beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.evaluation.features import firing_thresholds, random_directions

if TYPE_CHECKING:
    from sae_lens import SAE

LATENTS, NEURONS, RANDOM = "latents", "neurons", "random_latents"
_MAX_VALUES = 2**24


@dataclass
class FeatureMethod:
    """Features of tokens: activations ``[..., d_in]`` in, ``[..., n_features]`` out, 0 or above."""

    n_features: int
    encode: Callable[[Float[Tensor, "... d_in"]], Float[Tensor, "... features"]]

    def parts(
        self, acts: Float[Tensor, "items ... d_in"]
    ) -> Iterator[tuple[slice, Float[Tensor, "part ... features"]]]:
        """Features of a few rows or images at a time, as memory allows."""
        rows_per_item = acts[0].numel() // acts.shape[-1]
        step = max(1, _MAX_VALUES // (rows_per_item * self.n_features))
        for start in range(0, len(acts), step):
            part = slice(start, min(start + step, len(acts)))
            yield part, self.encode(acts[part])

    def n_active(self, acts: Float[Tensor, "rows d_in"]) -> Int[Tensor, " features"]:
        """On how many rows each feature is above 0."""
        counts = [(features > 0).sum(0).cpu() for _, features in self.parts(acts)]
        return torch.stack(counts).sum(0)


def feature_methods(
    attached: AttachedSAE,
    controls: Mapping[str, SAE[Any]],
    sample: Float[Tensor, "rows d_in"],
    seed: int,
) -> dict[str, FeatureMethod]:
    """The latents, neurons with both signs, random latents, and other SAEs as controls.

    ``neurons``: the hook's own coordinates, less their mean, each as far as it is above and as far
    as it is below. ``random_latents``: as many random directions as there are latents, each cut off
    so that it fires on as many rows of the sample as the latent of its number.

    Args:
        attached: the SAE that is scored.
        controls: name → another SAE on the same tokens of the same hook.
        sample: activations, from which means and thresholds are taken.
        seed: of the random directions.

    Raises:
        ValueError: a control has the name of another, or reads something else.
    """
    methods = {LATENTS: _of_sae(attached)}
    mean = sample.float().mean(0)

    def neurons(acts: Tensor) -> Tensor:
        centred = acts.float() - mean.to(acts.device)
        return torch.cat([centred, -centred], -1).relu()

    methods[NEURONS] = FeatureMethod(2 * sample.shape[-1], neurons)
    directions = random_directions(attached.d_sae, sample.shape[-1], seed)
    n_active = methods[LATENTS].n_active(sample)
    threshold = firing_thresholds(sample.cpu().float() - mean.cpu(), directions, n_active)

    def random(acts: Tensor) -> Tensor:
        along = (acts.float() - mean.to(acts.device)) @ directions.T.to(acts.device)
        return (along - threshold.to(acts.device)).relu()

    methods[RANDOM] = FeatureMethod(attached.d_sae, random)
    for name, sae in controls.items():
        if name in methods:
            raise ValueError(f"a control is called {name!r}, as another is; choose another name")
        methods[name] = _of_sae(_attached_alike(attached, name, sae))
    return methods


def _attached_alike(attached: AttachedSAE, name: str, sae: SAE[Any]) -> AttachedSAE:
    control = AttachedSAE(attached.model, sae)
    for what, wanted, found in (
        ("hook", attached.source.hook_name, control.source.hook_name),
        ("tokens", attached.source.token_kind, control.source.token_kind),
        ("number of tokens", attached.n_tokens, control.n_tokens),
    ):
        if wanted != found:
            raise ValueError(
                f"the control {name!r} reads the {what} {found!r}, but the SAE {wanted!r}; want a "
                "control that was trained on the same activations"
            )
    return control


def _of_sae(attached: AttachedSAE) -> FeatureMethod:
    return FeatureMethod(attached.d_sae, lambda acts: attached.encode(acts).relu())
