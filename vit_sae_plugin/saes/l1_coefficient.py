"""What an L1 coefficient of ``PatchTrainingSAE`` becomes on rows of another scale or width."""

from __future__ import annotations

from typing import Literal

MSENormalization = Literal["input_norm", "none"]


def equivalent_l1_coefficient(
    l1_coefficient: float,
    *,
    d_in: int,
    reference_d_in: int = 768,
    mse_normalization: MSENormalization = "input_norm",
    row_norm: float | None = None,
    reference_row_norm: float | None = None,
) -> float:
    """The λ that asks of rows ``[n, d_in]`` what ``l1_coefficient`` asks of the reference's rows.

    Multiply all rows by ``c``: an SAE whose biases and latents are multiplied by ``c`` too makes
    the same relative errors. Its squared error grows by ``c²``, its ``Σ|h|`` by ``c``. So

    - ``"input_norm"``, which divides the squared error by ``‖z‖``: both terms grow by ``c``, and λ
      stays as it is, whatever the model's scale;
    - ``"none"``: λ must grow by ``c``, the ratio of the rows' norms.

    The error is a *mean* over features, the penalty a *sum* over latents: the same rows in a space
    of ``m`` times the dimensions need λ divided by ``m``, with either. Together,
    ``λ · reference_d_in / d_in``, times ``row_norm / reference_row_norm`` for ``"none"``.

    The solution is then the same; the way there isn't, as Adam's steps don't scale with the rows.
    Rows that lie far from the origin for their spread need less with ``"input_norm"``, for ``‖z‖``
    counts the part that ``b_dec`` explains: ``relative_l1_coefficient`` of
    ``PatchTrainingSAEConfig`` takes that into account.

    Args:
        l1_coefficient: the reference's λ, such as PatchSAE's published 8e-5.
        d_in: width of the rows.
        reference_d_in: width of the reference's; PatchSAE's are 768 wide (CLIP ViT-B/16).
        mse_normalization: that of both.
        row_norm: typical norm of a row; needed for ``"none"``.
        reference_row_norm: typical norm of the reference's rows; needed for ``"none"``.

    Raises:
        ValueError: a width or norm that isn't positive, a missing norm, an unknown normalisation.
    """
    for name, width in (("d_in", d_in), ("reference_d_in", reference_d_in)):
        if width < 1:
            raise ValueError(f"{name} is {width}; want 1 or more")
    if mse_normalization not in ("input_norm", "none"):
        raise ValueError(f"mse_normalization is {mse_normalization!r}; want 'input_norm' or 'none'")
    equivalent = l1_coefficient * reference_d_in / d_in
    if mse_normalization == "input_norm":
        return equivalent
    norms = {"row_norm": row_norm, "reference_row_norm": reference_row_norm}
    for name, norm in norms.items():
        if norm is None or not norm > 0:
            raise ValueError(
                f"{name} is {norm}; want the rows' typical norm, above 0: without normalisation "
                "the coefficient depends on it"
            )
    return equivalent * row_norm / reference_row_norm  # type: ignore[operator]
