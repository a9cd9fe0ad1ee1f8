"""What the start of a run says of λ."""

import pytest
import torch
from sae_lens import TopKTrainingSAEConfig

from vit_sae_plugin.saes import PatchTrainingSAEConfig
from vit_sae_plugin.training.l1_guidance import l1_guidance

ROWS = torch.tensor([[3.0, 4.0], [0.0, 5.0], [30.0, 40.0]])  # norms 5, 5 and 50


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "norm 5 (the median), on which the published l1_coefficient of 8e-05 is 0.0307; l1_"),
        ({"mse_normalization": "none"}, "8e-05 is 0.154; l1_coefficient is 8e-05"),
        ({"relative_l1_coefficient": 0.061}, "0.0307; relative_l1_coefficient is 0.061"),
    ],
)
def test_the_published_coefficient_is_put_in_this_model_s_terms(settings, told) -> None:
    line = l1_guidance(PatchTrainingSAEConfig(d_in=2, d_sae=4, **settings), ROWS)
    assert line.startswith("rows of width 2 and ")
    assert told in line


def test_other_saes_have_other_coefficients() -> None:
    assert l1_guidance(TopKTrainingSAEConfig(d_in=2, d_sae=4, k=1), ROWS) is None
