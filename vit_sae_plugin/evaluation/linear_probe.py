"""A linear classifier on embeddings, and how much a reconstruction changes what it says."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


class LinearProbe(nn.Module):
    """Logistic regression on rows; on embeddings of unit length, as in MSAE, section 5.2.

    Args:
        d_in: width of a row.
        n_classes: number of classes.
        unit_rows: divide each row by its length first.
    """

    def __init__(self, d_in: int, n_classes: int, unit_rows: bool = True):
        super().__init__()
        self.unit_rows = unit_rows
        self.weight = nn.Parameter(torch.zeros(n_classes, d_in))
        self.bias = nn.Parameter(torch.zeros(n_classes))

    def forward(self, embeddings: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows n_classes"]:
        """Logits; the rows are as they were when it was fitted, not normalised yet."""
        rows = embeddings.to(self.weight)
        rows = functional.normalize(rows, dim=-1) if self.unit_rows else rows
        return functional.linear(rows, self.weight, self.bias)

    @torch.no_grad()
    def accuracy(self, embeddings: Tensor, labels: Tensor) -> float:
        """Share of embeddings given their label."""
        return (self(embeddings).argmax(-1).cpu() == labels.cpu()).double().mean().item()


def fit_linear_probe(
    embeddings: Float[Tensor, "rows d_in"],
    labels: Int[Tensor, " rows"],
    *,
    n_classes: int | None = None,
    unit_rows: bool = True,
    weight_decay: float = 1e-4,
    max_iterations: int = 200,
) -> LinearProbe:
    """Fit by full-batch L-BFGS from zero, so that the result needs no seed.

    In double precision where the device has it: in single, the line search stops where rounding
    hides the loss's slope, and the last bit of an embedding moves logits by up to 0.3 %.

    Args:
        embeddings: of a **training** split, raw; not the rows to be evaluated.
        labels: class indices from 0.
        n_classes: number of classes; default: the largest label + 1.
        unit_rows: classify directions, as contrastive models' embeddings want it. False: features
            are standardised for the fit instead, as activations inside a model want it.
        weight_decay: minimised is mean cross-entropy + ``weight_decay / 2 · ‖weight‖²``.
        max_iterations: L-BFGS iterations at most.

    Raises:
        ValueError: embeddings that aren't finite; labels that don't fit the embeddings, negative
            ones among them, or one class.
    """
    if len(embeddings) != len(labels):
        raise ValueError(f"there are {len(labels)} labels; want {len(embeddings)}, one a row")
    if not embeddings.isfinite().all():
        raise ValueError("an embedding holds NaN or infinity; want finite numbers")
    if len(labels) == 0 or int(labels.min()) < 0:
        raise ValueError("a label is missing or below 0; want one from 0 up for every row")
    n_classes = n_classes if n_classes is not None else int(labels.max()) + 1
    if n_classes < 2 or int(labels.max()) >= n_classes:
        raise ValueError(
            f"labels reach {int(labels.max())} and n_classes is {n_classes}; "
            "want at least 2 classes and labels below n_classes"
        )
    device = embeddings.device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no double
    probe = LinearProbe(embeddings.shape[-1], n_classes, unit_rows).to(device, dtype)
    embeddings, labels = embeddings.to(dtype), labels.to(device)
    mean, scale = embeddings.mean(0), embeddings.std(0).clamp(min=1e-12)
    if not unit_rows:
        embeddings = (embeddings - mean) / scale
    optimizer = torch.optim.LBFGS(
        probe.parameters(), max_iter=max_iterations, line_search_fn="strong_wolfe"
    )

    def loss_and_gradients() -> Tensor:
        optimizer.zero_grad()
        penalty = weight_decay / 2 * probe.weight.square().sum()
        loss = functional.cross_entropy(probe(embeddings), labels) + penalty
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(loss_and_gradients)  # type: ignore[arg-type]
    if not unit_rows:
        with torch.no_grad():
            probe.weight /= scale
            probe.bias -= probe.weight @ mean
    return probe.float().requires_grad_(False)


class ProbeTotals:
    """How often the probe says the same of a reconstruction, and how far its answers move."""

    def __init__(self, probe: LinearProbe):
        self.probe = probe
        self.n_rows = 0
        self._n_agree = 0
        self._divergence = 0.0

    @torch.no_grad()
    def update(self, x: Float[Tensor, "rows d_in"], x_hat: Float[Tensor, "rows d_in"]) -> None:
        """Add raw embeddings and their reconstructions."""
        original = functional.log_softmax(self.probe(x), dim=-1)
        spliced = functional.log_softmax(self.probe(x_hat), dim=-1)
        self.n_rows += len(x)
        self._n_agree += int((original.argmax(-1) == spliced.argmax(-1)).sum())
        divergence = (original.exp() * (original - spliced)).sum(-1)
        self._divergence += divergence.cpu().double().sum().item()

    def compute(self) -> dict[str, float]:
        """``probe_agreement``: share of rows with the same answer; ``probe_kl``: mean
        KL(original ‖ reconstruction), nats."""
        n = max(self.n_rows, 1)
        return {"probe_agreement": self._n_agree / n, "probe_kl": self._divergence / n}
