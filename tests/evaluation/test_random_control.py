"""The random control: worked by hand, and beaten by an SAE that knows the data."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from vit_sae_plugin.evaluation.random_control import random_directions_sae


def sae(d_in, d_sae):
    made = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae))
    made.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    return made


def test_by_hand():
    rows = torch.tensor([[3.0, 1.0], [1.0, 1.0], [2.0, 4.0]])
    control = random_directions_sae(sae(2, 5), rows, 2, seed=1)
    assert control.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    mean = torch.tensor([2.0, 2.0])
    directions = control.W_enc.detach().T
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(5))
    along = torch.zeros(3, 2)
    for row in range(3):
        projections = [float((rows[row] - mean) @ direction) for direction in directions]
        for latent in sorted(range(5), key=lambda i: -projections[i])[:2]:
            along[row] += max(projections[latent], 0.0) * directions[latent]
    fit = torch.linalg.lstsq(along.reshape(-1, 1), (rows - mean).reshape(-1, 1)).solution.item()
    torch.testing.assert_close(control(rows), mean + fit * along)
    assert (control.encode(rows) != 0).sum(-1).max() <= 2


def test_the_seed_decides():
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    one, again, other = (random_directions_sae(sae(4, 8), rows, 2, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.W_enc, again.W_enc)
    assert not torch.equal(one.W_enc, other.W_enc)


@torch.no_grad()
def test_the_true_directions_are_better():
    # another seed than the control's, whose directions would else be the true ones
    generator = torch.Generator().manual_seed(5)
    truth = torch.randn(96, 64, generator=generator)
    truth /= truth.norm(dim=1, keepdim=True)
    active = (torch.rand(400, 96, generator=generator) < 0.03).float()
    rows = active * (1 + torch.rand(400, 96, generator=generator)) @ truth
    true_sae = sae(64, 96)
    true_sae.W_enc.copy_(truth.T)
    true_sae.W_dec.copy_(truth)
    true_sae.b_enc.fill_(-0.5)
    k = round((true_sae.encode(rows) != 0).sum(-1).float().mean().item())
    control = random_directions_sae(true_sae, rows, k)
    spread = (rows - rows.mean(0)).square().sum()
    explained = [1 - (rows - one(rows)).square().sum() / spread for one in (true_sae, control)]
    assert explained[0] > explained[1] + 0.2
    assert explained[1] > 0  # the factor is fitted: never worse than the mean alone


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="k is 9; want 1 to 8"):
        random_directions_sae(sae(4, 8), torch.zeros(3, 4), 9)
    with pytest.raises(ValueError, match=r"shape \(0, 4\); want \[n, 4\]"):
        random_directions_sae(sae(4, 8), torch.zeros(0, 4), 2)
