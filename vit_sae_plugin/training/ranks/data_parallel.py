"""Training steps that several processes take together, each on its rows of the batch."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from vit_sae_plugin.activations.row_store import RowStore
from vit_sae_plugin.saes.firing_counts import firing_counts
from vit_sae_plugin.training.ranks.process_group import Ranks
from vit_sae_plugin.training.ranks.shared_scaler import SharedActivationScaler
from vit_sae_plugin.training.ranks.whole_batch_topk import whole_batch_topk
from vit_sae_plugin.training.vit_sae_trainer import ViTSAETrainer


class DataParallelTrainer(ViTSAETrainer):
    """``ViTSAETrainer`` on one of the processes that share each batch.

    All hold the same weights, and move them alike: gradients, counts of firing latents, losses and
    metrics are those of the whole batch, summed over the processes. One process would compute the
    same, but for the order of sums.

    Args:
        cfg, sae, settings: as ``ViTSAETrainer``.
        data_provider: gives this process's rows, and says how many the whole batch has.
        ranks: the processes.
    """

    def __init__(
        self,
        cfg: SAETrainerConfig,
        sae: TrainingSAE[Any],
        data_provider: RowStore,
        *,
        ranks: Ranks,
        **settings: Any,
    ) -> None:
        super().__init__(cfg, sae, data_provider, **settings)
        self.ranks = ranks
        self.store = data_provider
        self.activation_scaler = SharedActivationScaler(ranks)
        self._n_rows = 0
        self._n_fired = self.act_freq_scores
        self._sums: Tensor | None = None
        self._input_is_finite = torch.tensor(True)
        ranks.copy_first_([tensor.data for tensor in sae.state_dict().values()])

    @property
    def _share(self) -> float:
        """The share of the batch's rows that this process has."""
        return self._n_rows / self.store.global_batch_rows

    @override
    def step(self, batch: Float[Tensor, "rows d_in"]) -> TrainStepOutput:
        """A step on this process's rows of the batch, which may be none.

        Returns:
            The output for these rows; the losses and metrics are the whole batch's.
        """
        if self.n_training_steps == 0 and hasattr(self.sae, "start_from"):
            first_batch = self.ranks.gather_rows(batch).to(self.sae.device)
            self.sae.start_from(self.activation_scaler(first_batch))
        self._n_rows = len(batch)
        if self._n_rows == 0:
            # What an SAE does at the start of each step, it must do here too. No row of zeros:
            # some normalisations divide by its norm.
            batch = torch.linspace(-1, 1, batch.shape[1]).to(batch).unsqueeze(0)
        output = super().step(batch)
        self.n_training_samples += self.store.global_batch_rows - len(batch)
        return self._of_whole_batch(output)

    @override
    def _train_step(self, sae: TrainingSAE[Any], sae_in: Tensor) -> TrainStepOutput:
        with whole_batch_topk(sae, self._n_rows, self.store.global_batch_rows, self.ranks):
            output = super()._train_step(sae, sae_in)
        if "topk_threshold" in output.metrics:
            output.metrics["topk_threshold"] = sae.topk_threshold  # the whole batch's
        return output

    @override
    @torch.no_grad()
    def _count_firing(self, n_fired: Tensor, n_rows: int) -> None:
        self._n_fired = n_fired  # counted when the gradients are summed, in the same exchange

    @override
    @torch.no_grad()
    def _finish_gradients(self) -> None:
        if self.freeze_decoder:
            self.sae.W_dec.grad = None
        parameters = [p for p in self.sae.parameters() if p.grad is not None]
        gradients, n_fired = self._summed([p.grad for p in parameters], self._n_fired)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        super()._count_firing(n_fired, self.store.global_batch_rows)
        super()._finish_gradients()

    def _summed(self, gradients: list[Tensor], n_fired: Tensor) -> tuple[list[Tensor], Tensor]:
        """Sums over the processes: of gradients by each one's share of the rows, and of counts."""
        parts = [*gradients, n_fired]
        weights = [self._share] * len(gradients) + [1.0]
        sizes = [part.numel() for part in parts]
        if self._sums is None or len(self._sums) != sum(sizes):
            dtype = torch.promote_types(self.sae.dtype, torch.float32)
            self._sums = torch.empty(sum(sizes), dtype=dtype, device=n_fired.device)
        pieces = self._sums.split(sizes)
        if self._n_rows == 0:
            self._sums.zero_()
        else:
            for piece, part, weight in zip(pieces, parts, weights, strict=True):
                torch.mul(part.flatten(), weight, out=piece)
        self.ranks.sum_(self._sums)  # in one go: what takes time is the number of exchanges
        *sums, counts = (piece.view_as(part) for piece, part in zip(pieces, parts, strict=True))
        return sums, counts

    def _of_whole_batch(self, output: TrainStepOutput) -> TrainStepOutput:
        if self._n_rows == 0:
            output.sae_in, output.sae_out = output.sae_in[:0], output.sae_out[:0]
            output.hidden_pre = output.hidden_pre[:0]
            output.feature_acts = self.sae.W_dec.new_zeros(0, self.sae.cfg.d_sae)
        named = {"loss": output.loss, **output.losses, **output.metrics}
        is_finite = super().input_is_finite(output)
        values = [self._share, is_finite, *named.values()]
        own = torch.stack([torch.as_tensor(value).detach().to(output.loss) for value in values])
        by_rank = self.ranks.stack(own)
        by_rank = by_rank[by_rank[:, 0] > 0]  # the others have no rows
        self._input_is_finite = by_rank[:, 1].min()
        means = (by_rank[:, :1] * by_rank[:, 2:]).sum(dim=0)
        whole = dict(zip(named, means, strict=True))
        for number, name in enumerate(named, start=2):  # as SAELens names what is no mean
            if name.startswith(("max_", "min_")):
                whole[name] = getattr(by_rank[:, number], name[:3])()
        output.loss = whole["loss"]
        output.losses = {name: whole[name] for name in output.losses}
        output.metrics = {name: whole[name] for name in output.metrics}
        return output

    @override
    def whole_batch(self, rows: Tensor) -> Tensor:
        return self.ranks.gather_rows(rows)

    @override
    def input_is_finite(self, output: TrainStepOutput) -> Tensor:
        return self._input_is_finite

    @override
    @torch.no_grad()
    def l0_of(self, output: TrainStepOutput) -> Tensor:
        n_active = firing_counts(output).sum() * (self._n_rows > 0)
        return self.ranks.sum_(n_active) / self.store.global_batch_rows

    @override
    @torch.no_grad()
    def explained_variance_of(self, output: TrainStepOutput) -> Tensor:
        residual, variance = self._squares_of_rows(output)
        residual, variance = self.ranks.sum_(torch.stack([residual.sum(), variance.sum()]))
        return 1 - residual / variance

    @override
    @torch.no_grad()
    def build_train_step_log_dict(
        self, output: TrainStepOutput, n_training_samples: int
    ) -> dict[str, Any]:
        """SAELens's, of the whole batch: all processes must ask for it."""
        logged = super().build_train_step_log_dict(output, n_training_samples)
        by_row = torch.stack(self._squares_of_rows(output), dim=-1)
        residual, variance = self.ranks.gather_rows(by_row).unbind(dim=-1)
        explained = 1 - residual / variance
        return logged | {
            "metrics/explained_variance_legacy": explained.mean().item(),
            "metrics/explained_variance_legacy_std": explained.std().item(),
            "metrics/explained_variance": (1 - residual.mean() / variance.mean()).item(),
        }

    def _squares_of_rows(self, output: TrainStepOutput) -> tuple[Tensor, Tensor]:
        """Of each row here: squared residual, and squared distance from the whole batch's mean."""
        sae_in = output.sae_in.float()
        mean = self.ranks.sum_(sae_in.sum(dim=0)) / self.store.global_batch_rows
        residual = (output.sae_out.float() - sae_in).square().sum(dim=-1)
        return residual, (sae_in - mean).square().sum(dim=-1)
