"""``evaluate_embeddings``: the evaluation suite of MSAE, for any SAELens SAE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from vit_sae_plugin.activations.embedding_rows import EmbeddingRows
from vit_sae_plugin.aggregation.activation_histogram import ActivationHistogram
from vit_sae_plugin.attached_sae import RowCoder
from vit_sae_plugin.evaluation.cknna import Neighbours, alignment
from vit_sae_plugin.evaluation.embedding_metrics import EmbeddingTotals, decoder_orthogonality
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.histogram_table import histogram_table
from vit_sae_plugin.evaluation.linear_probe import LinearProbe, ProbeTotals
from vit_sae_plugin.evaluation.row_sample import RowSample

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics

Rows = Tensor | EmbeddingRows | Iterable[Tensor]


@torch.no_grad()
def evaluate_embeddings(
    sae: SAE[Any],
    rows: Rows | Mapping[str, Rows],
    *,
    statistics: EmbeddingStatistics | Mapping[str, EmbeddingStatistics] | None = None,
    probe: LinearProbe | None = None,
    k_list: Sequence[int] | None = None,
    n_cknna: int = 2048,
    n_neighbors: int = 10,
    batch_size_rows: int = 4096,
    seed: int = 0,
) -> EvaluationReport:
    """Measure an SAE on embeddings (or any rows), in one pass and constant memory.

    All metrics are in the model's own space: what was centred and scaled for the SAE is restored
    before. The report's tables:

    - ``embeddings``: a row for each modality, under the SAE's own rule for its latents. Metrics of
      ``EmbeddingTotals.compute``; CKNNA between inputs and latents or reconstructions, on rows as
      they are (``_raw``, as MSAE's authors; unbiased and biased) and on rows of unit length
      (``_unit``, as Huh et al.); probe agreement and KL; decoder orthogonality (of unit decoder
      rows).
    - ``progressive_recovery``: the same for each (modality, k).
    - ``activation_histogram``: see ``histogram_table``.

    Everything is exact but CKNNA, whose time grows with the square of the rows: it is computed on
    ``n_cknna`` of them, drawn uniformly. An SAE that keeps few latents by its own rule (TopK) gives
    no more than those at a larger k.

    Args:
        sae: any SAELens SAE.
        rows: raw embeddings ``[n, d_in]`` as a tensor, ``EmbeddingRows`` or batches of tensors;
            or several of them by modality, such as ``{"image": …, "text": …}``.
        statistics: of each modality's **training** rows. Default: those in the SAE's metadata, for
            the modality they name.
        probe: a classifier of embeddings, fitted on training rows by ``fit_linear_probe``.
        k_list: numbers of latents for progressive recovery. Default: 16, doubled up to d_sae, and
            d_sae. Empty: none.
        n_cknna: rows that CKNNA is computed on.
        n_neighbors: its neighbours.
        batch_size_rows: rows encoded at a time, at most.
        seed: of CKNNA's sample.

    Raises:
        ValueError: widths that don't fit, no rows, k out of range, or a second modality for which
            no statistics were given although the SAE was trained on standardised rows.
    """
    by_modality = _by_modality(rows, sae)
    ks = _check_k_list(k_list, sae.cfg.d_sae)
    if batch_size_rows < 1:
        raise ValueError(f"batch_size_rows is {batch_size_rows}; want 1 or more")
    orthogonality = decoder_orthogonality(functional.normalize(sae.W_dec.detach().float(), dim=-1))
    own, progressive, histograms = {}, {}, {}
    for modality, modality_rows in by_modality.items():
        coder = RowCoder(sae, statistics=_statistics_of(modality, statistics, sae))
        measured = _Measured(coder, [None, *ks], probe)
        sample = RowSample(n_cknna, seed)
        for batch in iterate_rows(modality_rows, batch_size_rows, coder):
            batch = batch.to(coder.device)
            measured.update(batch)
            sample.update(batch)
        if measured.n_rows == 0:
            raise ValueError(f"there are no {modality} rows; want 1 or more to evaluate")
        aligned = _Alignment(coder, sample.rows, n_neighbors)
        for k in measured.totals:
            result = measured.compute(k) | aligned.compute(k)
            if k is None:
                own[modality] = result | {"decoder_orthogonality": orthogonality}
            else:
                progressive[modality, k] = result
        histograms[modality] = histogram_table(measured.histogram, measured.n_rows)

    tables = {"embeddings": pd.DataFrame.from_dict(own, orient="index").rename_axis("modality")}
    if progressive:
        index = pd.MultiIndex.from_tuples(progressive, names=["modality", "k"])
        tables["progressive_recovery"] = pd.DataFrame(list(progressive.values()), index=index)
    tables["activation_histogram"] = pd.concat(histograms, names=["modality"])
    settings = {
        "architecture": sae.cfg.architecture(),
        "d_in": sae.cfg.d_in,
        "d_sae": sae.cfg.d_sae,
        "n_cknna": {name: min(n_cknna, result["n_rows"]) for name, result in own.items()},
        "n_neighbors": n_neighbors,
    }
    notes = [] if probe else ["probe agreement and KL: left out, for no probe was given"]
    return EvaluationReport(tables, settings, notes)


class _Measured:
    """Totals for the SAE's own rule (k None) and for each k, filled from the same rows."""

    def __init__(self, coder: RowCoder, ks: Sequence[int | None], probe: LinearProbe | None):
        self.coder = coder
        self.totals = {k: EmbeddingTotals(coder.d_in, coder.d_sae) for k in ks}
        self.probes = {k: ProbeTotals(probe) for k in ks} if probe is not None else {}
        self.histogram = ActivationHistogram(coder.d_sae).to(coder.device)

    @property
    def n_rows(self) -> int:
        return self.totals[None].basic.n_tokens

    def update(self, x: Tensor) -> None:
        for k, totals in self.totals.items():
            latents = self.coder.encode(x, k)
            x_hat = self.coder.decode(latents)
            totals.update(x, x_hat, latents)
            if k in self.probes:
                self.probes[k].update(x, x_hat)
            if k is None:
                self.histogram.add(latents.abs())

    def compute(self, k: int | None) -> dict[str, float]:
        probe = self.probes[k].compute() if k in self.probes else {}
        return self.totals[k].compute() | probe


ALIGNMENT_COLUMNS = (
    "cknna_latents_raw",
    "cknna_latents_unit",
    "cknna_latents_raw_biased",
    "cknna_reconstruction_raw",
    "cknna_reconstruction_unit",
)


class _Alignment:
    """CKNNA of sampled inputs with what the SAE makes of them at any k."""

    def __init__(self, coder: RowCoder, x: Tensor, n_neighbors: int):
        self.coder = coder
        self.n_neighbors = n_neighbors
        self.x = x.to(coder.device)
        self.is_possible = len(x) > max(n_neighbors, 3)
        if self.is_possible:
            self.of_raw, self.of_unit = self._neighbours(self.x)

    def _neighbours(self, rows: Tensor) -> tuple[Neighbours, Neighbours]:
        raw, unit = (Neighbours(rows, self.n_neighbors, unit_rows=unit) for unit in (False, True))
        return raw, unit

    def compute(self, k: int | None) -> dict[str, float]:
        """NaN where the rows are too few."""
        if not self.is_possible:
            return dict.fromkeys(ALIGNMENT_COLUMNS, float("nan"))
        latents, x_hat = [], []
        for part in self.coder.parts(len(self.x)):
            latents.append(self.coder.encode(self.x[part], k))
            x_hat.append(self.coder.decode(latents[-1]))
        latents_raw, latents_unit = self._neighbours(torch.cat(latents))
        x_hat_raw, x_hat_unit = self._neighbours(torch.cat(x_hat))
        values = (
            alignment(self.of_raw, latents_raw),
            alignment(self.of_unit, latents_unit),
            alignment(self.of_raw, latents_raw, unbiased=False),
            alignment(self.of_raw, x_hat_raw),
            alignment(self.of_unit, x_hat_unit),
        )
        return dict(zip(ALIGNMENT_COLUMNS, values, strict=True))


def iterate_rows(rows: Rows, batch_size_rows: int, coder: RowCoder) -> Iterator[Tensor]:
    """Rows in batches small enough for their latents."""
    if isinstance(rows, EmbeddingRows):
        n_at_a_time = next(coder.parts(batch_size_rows)).stop
        yield from rows.batches(n_at_a_time)
        return
    for batch in [rows] if isinstance(rows, Tensor) else rows:
        if batch.ndim != 2:
            raise ValueError(f"rows are {list(batch.shape)}; want [n, d_in]")
        for some in batch.split(batch_size_rows):
            for part in coder.parts(len(some)):
                yield some[part]


def default_k_list(d_sae: int, start: int = 16) -> list[int]:
    """16, 32, … up to d_sae, and d_sae itself."""
    ks = []
    while start < d_sae:
        ks.append(start)
        start *= 2
    return [*ks, d_sae]


def _check_k_list(k_list: Sequence[int] | None, d_sae: int) -> list[int]:
    ks = default_k_list(d_sae) if k_list is None else list(k_list)
    if ks != sorted(set(ks)) or (ks and not 1 <= ks[0] <= ks[-1] <= d_sae):
        raise ValueError(f"k_list is {ks}; want rising numbers from 1 to d_sae, {d_sae}")
    return ks


def _by_modality(rows: Rows | Mapping[str, Rows], sae: SAE[Any]) -> Mapping[str, Rows]:
    if isinstance(rows, Mapping):
        return rows
    trained_on = sae.cfg.metadata.input_statistics or {}
    return {trained_on.get("modality", "image"): rows}


def _statistics_of(
    modality: str,
    statistics: EmbeddingStatistics | Mapping[str, EmbeddingStatistics] | None,
    sae: SAE[Any],
) -> EmbeddingStatistics | None:
    """The training statistics of this modality; None only if the SAE reads raw rows."""
    if isinstance(statistics, Mapping):
        if modality in statistics:
            return statistics[modality]
    elif statistics is not None and statistics.modality == modality:
        return statistics
    in_metadata = sae.cfg.metadata.input_statistics
    if in_metadata is None and statistics is None:
        return None
    if in_metadata is not None and in_metadata["modality"] == modality:
        return None  # RowCoder finds them there
    raise ValueError(
        f"the SAE reads standardised rows, but no statistics of {modality!r} rows are known; pass "
        f"statistics={{{modality!r}: EmbeddingStatistics.from_rows(training_rows, {modality!r})}}"
    )
