"""How well the SAE in training reconstructs images that it doesn't train on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vit_sae_plugin.activations.activation_source import hook_values
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.training.checkpoint_weights import whitened_copy

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.training.activation_scaler import ActivationScaler

    from vit_sae_plugin.activations import ActivationSource, EmbeddingStatistics
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT


class HeldOutImages:
    """Measures an SAE in training on the same images each time, in batches.

    Args:
        model: the model it reads.
        images: the held-out images.
        source: the hook and tokens it reads.
        statistics: centring and scaling of its rows, if any.
        n_images: how many images to measure on.
        batch_size_images: images the model sees at once.
        n_workers: processes that decode images.
    """

    def __init__(
        self,
        model: HookedViT,
        images: ImageSource,
        source: ActivationSource,
        *,
        statistics: EmbeddingStatistics | None = None,
        n_images: int = 256,
        batch_size_images: int = 32,
        n_workers: int = 0,
    ) -> None:
        self.model = model
        self.images = images
        self.source = source
        self.statistics = statistics
        self.n_images = n_images
        self.batch_size_images = batch_size_images
        self.n_workers = n_workers

    @torch.no_grad()
    def measure(self, sae: TrainingSAE[Any], scaler: ActivationScaler) -> dict[str, float]:
        """The measures, by name.

        - ``held_out_mse``: squared error, mean over tokens and features, in the model's units.
        - ``held_out_explained_variance``: ``1 − Σ‖z − ẑ‖² / Σ‖z − mean z‖²``.
        - ``held_out_l0``: mean number of active latents of a token.
        - ``held_out_output_cosine``: mean cosine similarity of the model's output with the
          reconstruction spliced in to its own output.

        Args:
            sae: in training; its mode is as before afterwards.
            scaler: what its rows are scaled or whitened by.
        """
        if scaler.whitening is not None:
            sae = whitened_copy(sae, scaler.whitening)
        was_training = sae.training
        source = replace(self.source, input_scaling=scaler.scaling_factor)
        try:
            attached = AttachedSAE(self.model, sae.eval(), source, self.statistics)
            return self._measure(attached)
        finally:
            sae.train(was_training)

    def _measure(self, attached: AttachedSAE) -> dict[str, float]:
        walk = attached.walk(
            self.images,
            batch_size_images=self.batch_size_images,
            n_images=self.n_images,
            shuffle=True,  # a fair sample, and by the walk's own seed always the same
            n_workers=self.n_workers,
        )
        output = replace(attached.source, hook_name=attached.hook_name_out)
        n_tokens = n_images = 0
        residual = l0 = cosine = squares = 0.0
        # around the first image's mean, for the sums of squares cancel if that is far from zero
        origin = total = torch.zeros(attached.rows.d_out, dtype=torch.float64)
        for batch in walk:
            values = hook_values([attached.source, output], self.model, batch.pixels)
            acts_btd = attached.source.select(self.model.cfg, values[0])
            target_btd = output.select(self.model.cfg, values[1])
            if n_tokens == 0:
                origin = target_btd[0].cpu().double().mean(0)
            for part, latents in attached.encode_parts(acts_btd):
                z = target_btd[part]
                x_hat = attached.decode(latents) + attached.rows.skip(acts_btd[part])
                error = x_hat.to(z) - z
                centred = z.cpu().double().flatten(0, 1) - origin
                residual += _sum_of_squares(error)
                squares += _sum_of_squares(centred)
                total = total + centred.sum(0)
                l0 += float((latents != 0).sum())
                n_tokens += len(centred)
            outputs = self.model(batch.pixels.to(self.model.cfg.device))
            spliced = attached.splice(batch.pixels.to(self.model.cfg.device))
            cosine += float(torch.cosine_similarity(outputs, spliced, dim=-1).sum())
            n_images += len(outputs)
        variance = squares - float(total.square().sum()) / n_tokens
        return {
            "held_out_mse": residual / (n_tokens * attached.rows.d_out),
            "held_out_explained_variance": 1 - residual / variance
            if variance > 0
            else float("nan"),
            "held_out_l0": l0 / n_tokens,
            "held_out_output_cosine": cosine / n_images,
        }


def _sum_of_squares(values: Tensor) -> float:
    return float(values.cpu().double().square().sum())
