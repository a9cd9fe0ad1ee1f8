from __future__ import annotations

import pytest
import torch

from vit_sae_plugin.saes import ghost_gradient_error

N_TOKENS, D_IN, D_SAE = 6, 4, 10


@pytest.fixture
def step():
    """Inputs of the ghost term; latents 2 and 7 are dead."""
    generator = torch.Generator().manual_seed(0)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[[2, 7]] = True
    sae_in, sae_out = torch.randn(2, N_TOKENS, D_IN, generator=generator)
    return {
        "sae_in": sae_in,
        "sae_out": sae_out,
        "hidden_pre": torch.randn(N_TOKENS, D_SAE, generator=generator).requires_grad_(),
        "decoder_rows": torch.randn(D_SAE, D_IN, generator=generator).requires_grad_(),
        "dead_neuron_mask": dead,
        "reconstruction_error": (sae_out - sae_in).square(),
    }


def test_one_token_by_hand():
    # z = (3, 4), reconstruction 0: r = (3, 4) of length 5. The dead latent decodes to (1, 0) and
    # acts with exp(ln 2) = 2: g = (2, 0), scaled by 5 / 4 to (2.5, 0), half the length of r.
    hidden_pre = torch.tensor([[2.0]]).log().requires_grad_()
    decoder_rows = torch.tensor([[1.0, 0.0]], requires_grad=True)
    ghost = ghost_gradient_error(
        sae_in=torch.tensor([[3.0, 4.0]]),
        sae_out=torch.zeros(1, 2),
        hidden_pre=hidden_pre,
        decoder_rows=decoder_rows,
        dead_neuron_mask=torch.tensor([True]),
        reconstruction_error=torch.tensor([[9.0, 16.0]]),
    )
    # e = ((2.5 - 3)² / 5, (0 - 4)² / 5) = (0.05, 3.2), rescaled to (9, 16).
    torch.testing.assert_close(ghost, torch.tensor([[9.0, 16.0]]), rtol=1e-4, atol=0)
    ghost.sum().backward()
    # Rescaling factors (180, 5); de/dg = 2 (g - r) / 5 = (-0.2, -1.6); dg/dW = 2 · 5/4 = 2.5;
    # dg_0/dh_pre = 2.5, dg_1/dh_pre = 0.
    torch.testing.assert_close(decoder_rows.grad, torch.tensor([[-90.0, -20.0]]), rtol=1e-3, atol=0)
    torch.testing.assert_close(hidden_pre.grad, torch.tensor([[-90.0]]), rtol=1e-3, atol=0)


def test_only_dead_latents_get_a_gradient(step):
    ghost_gradient_error(**step).mean().backward()
    dead = step["dead_neuron_mask"]
    for gradient in (step["hidden_pre"].grad, step["decoder_rows"].grad.T):
        assert torch.all(gradient[:, ~dead] == 0)
        assert torch.all(gradient[:, dead].abs().sum(dim=0) > 0)


def test_its_value_is_about_the_reconstruction_error(step):
    ghost, error = ghost_gradient_error(**step), step["reconstruction_error"]
    torch.testing.assert_close(ghost.mean(), error.mean(), rtol=1e-2, atol=0)


def test_without_dead_latents_it_is_zero_and_has_no_gradient(step):
    step["dead_neuron_mask"] = torch.zeros(D_SAE, dtype=torch.bool)
    ghost = ghost_gradient_error(**step)
    assert torch.equal(ghost, torch.zeros(N_TOKENS, D_IN))
    assert not ghost.requires_grad


@pytest.mark.parametrize("n_dead", [0, 2])
def test_compiled_as_one_graph_it_is_the_same(step, n_dead):
    if n_dead == 0:
        step["dead_neuron_mask"] = torch.zeros(D_SAE, dtype=torch.bool)
    compiled = torch.compile(ghost_gradient_error, fullgraph=True, backend="aot_eager")
    ghost, ghost_compiled = ghost_gradient_error(**step), compiled(**step)
    torch.testing.assert_close(ghost_compiled, ghost)
    ghost_compiled.sum().backward()
    gradient = step["decoder_rows"].grad
    step["decoder_rows"].grad = None
    if n_dead == 0:
        assert torch.equal(gradient, torch.zeros(D_SAE, D_IN))
    else:
        ghost.sum().backward()
        torch.testing.assert_close(gradient, step["decoder_rows"].grad)


def test_large_pre_activations_do_not_overflow(step):
    step["hidden_pre"] = (step["hidden_pre"].detach() + 500).requires_grad_()
    ghost_gradient_error(**step).mean().backward()
    assert step["hidden_pre"].grad.isfinite().all()
    assert step["hidden_pre"].grad.abs().sum() > 0


def test_a_perfectly_reconstructed_token_counts_nothing(step):
    step["sae_out"][0] = step["sae_in"][0]
    step["reconstruction_error"] = (step["sae_out"] - step["sae_in"]).square()
    ghost = ghost_gradient_error(**step)
    assert torch.all(ghost[0] == 0)
    ghost.mean().backward()
    assert step["decoder_rows"].grad.isfinite().all()


def test_extra_batch_axes_change_nothing(step):
    flat = ghost_gradient_error(**step)
    for name in ("sae_in", "sae_out", "hidden_pre", "reconstruction_error"):
        step[name] = step[name].unflatten(0, (2, 3))
    torch.testing.assert_close(ghost_gradient_error(**step).flatten(0, 1), flat)
