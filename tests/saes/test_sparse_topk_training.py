"""Sparse steps of ``topk`` and ``batchtopk`` against SAELens's own."""

from __future__ import annotations

import copy

import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.saes.sae import TrainStepInput

from tests.c_compiler import C_COMPILERS, doing_it
from vit_sae_plugin.saes import (
    SparseBatchTopKTrainingSAE,
    SparseTopKTrainingSAE,
    TopKGhostTrainingSAEConfig,
    new_training_sae,
    sparse_products,
)
from vit_sae_plugin.saes.sparse_topk_training import _SparseCode

CONFIGS = {
    "topk": (TopKTrainingSAEConfig, TopKTrainingSAE, SparseTopKTrainingSAE),
    "batchtopk": (BatchTopKTrainingSAEConfig, BatchTopKTrainingSAE, SparseBatchTopKTrainingSAE),
}
SETTINGS = {
    "defaults": {},
    "not rescaled": {"rescale_acts_by_decoder_norm": False},
    "b_dec not subtracted": {"apply_b_dec_to_input": False},
    "rows normalised": {"normalize_activations": "layer_norm"},
}
# rows, d_in, d_sae, k. Tables of the compiled code hold some 700 rows or more, strips up to 192
# columns, chunks 2,048 latents.
SHAPES = {
    "small": (9, 7, 12, 3),
    "several strips": (5, 400, 30, 4),
    "several tables": (3000, 6, 20, 2),
    "several chunks": (20, 5, 5000, 30),
    "all latents": (8, 6, 10, 10),
}
DEAD = {"none": 0.0, "a few": 0.1, "most": 0.9}

needs_compiler = pytest.mark.skipif(not C_COMPILERS, reason="there is no C compiler")


def make_pair(architecture, shape="small", **settings) -> tuple[TrainingSAE, TrainingSAE]:
    """SAELens's SAE and ours, with the same weights of different norms."""
    config, theirs, ours = CONFIGS[architecture]
    _, d_in, d_sae, k = SHAPES[shape]
    torch.manual_seed(0)
    sae = theirs(config(**{"d_in": d_in, "d_sae": d_sae, "k": k} | settings))
    with torch.no_grad():
        sae.b_enc.normal_(std=0.3)
        sae.b_dec.normal_()
        sae.W_dec.mul_(5 * torch.rand(d_sae, 1, dtype=sae.dtype) + 1)
        sae.W_enc.add_(0.1 * torch.randn_like(sae.W_enc))
    fast = ours(copy.deepcopy(sae.cfg))
    fast.load_state_dict(sae.state_dict())
    return sae.train(), fast.train()


def step_input(sae: TrainingSAE, n_rows: int, share_dead: float = 0.0) -> TrainStepInput:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(n_rows, sae.cfg.d_in, generator=generator).to(sae.dtype)
    dead = torch.arange(sae.cfg.d_sae) < round(share_dead * sae.cfg.d_sae)
    return TrainStepInput(rows, {}, dead, n_training_steps=0, is_logging_step=False)


def assert_same_step(theirs, ours, step: TrainStepInput) -> None:
    expected, output = theirs.training_forward_pass(step), ours.training_forward_pass(step)
    assert output.feature_acts.is_sparse, "the step wasn't sparse"
    tight = {"rtol": 1e-5, "atol": 1e-5} if theirs.dtype == torch.float32 else {}
    torch.testing.assert_close(output.sae_out, expected.sae_out, **tight)
    torch.testing.assert_close(output.hidden_pre, expected.hidden_pre, **tight)
    torch.testing.assert_close(output.feature_acts.to_dense(), expected.feature_acts, **tight)
    assert torch.equal(output.n_fired, (expected.feature_acts != 0).sum(0).float())
    assert output.losses.keys() == expected.losses.keys()
    for name, loss in expected.losses.items():
        torch.testing.assert_close(output.losses[name], loss, **tight)
    torch.testing.assert_close(output.loss, expected.loss, **tight)
    expected.loss.backward()
    output.loss.backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        largest = parameter.grad.abs().max()
        own = gradients[name].grad
        assert own.stride() == parameter.grad.stride()
        torch.testing.assert_close(own / largest, parameter.grad / largest, **tight)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_step_is_sae_lens_s(architecture, shape, dtype):
    theirs, ours = make_pair(architecture, shape, dtype=dtype)
    assert_same_step(theirs, ours, step_input(theirs, SHAPES[shape][0]))


@needs_compiler
@pytest.mark.parametrize("share_dead", DEAD.values(), ids=DEAD)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_settings_and_dead_latents(architecture, settings, share_dead):
    theirs, ours = make_pair(architecture, dtype="float64", aux_loss_coefficient=0.7, **settings)
    step = step_input(theirs, 30, share_dead)
    if share_dead and settings.get("normalize_activations") == "layer_norm":
        with pytest.raises(ValueError, match="does not support activation normalization"):
            ours.training_forward_pass(step)
        return
    assert_same_step(theirs, ours, step)


@needs_compiler
def test_the_threshold_of_batchtopk_runs_as_sae_lens_s():
    theirs, ours = make_pair("batchtopk", k=2.5)
    for _ in range(3):
        for sae in (theirs, ours):
            sae.training_forward_pass(step_input(sae, 9))
    assert ours.topk_threshold > 0
    torch.testing.assert_close(ours.topk_threshold, theirs.topk_threshold)


@needs_compiler
@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_gradients_by_finite_differences(architecture, settings):
    _, sae = make_pair(architecture, dtype="float64", **settings)
    x = step_input(sae, 6).sae_in
    drawn = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
    weights = [weight.detach().clone().requires_grad_() for weight in drawn]

    def reconstruction_and_pre_activations(*weights):
        return _SparseCode.apply(x, *weights, sae)[:2]

    assert torch.autograd.gradcheck(reconstruction_and_pre_activations, weights)


@needs_compiler
def test_topk_ghost_is_sparse_and_the_same_as_without_a_compiler():
    torch.manual_seed(0)
    sae = new_training_sae(TopKGhostTrainingSAEConfig(d_in=6, d_sae=20, k=3), "cpu").train()
    step = step_input(sae, 30, share_dead=0.3)
    output = sae.training_forward_pass(step)
    assert output.feature_acts.is_sparse
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    with doing_it("torch", sparse_products):
        expected = sae.training_forward_pass(step)
    assert not expected.feature_acts.is_sparse
    expected.loss.backward()
    torch.testing.assert_close(output.losses, expected.losses)
    torch.testing.assert_close({n: p.grad for n, p in sae.named_parameters()}, gradients)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_hook_in_use_sees_and_changes_what_it_does_in_sae_lens(architecture):
    theirs, ours = make_pair(architecture)
    step = step_input(ours, 9)
    for sae in (theirs, ours):
        sae.hook_sae_acts_post.register_forward_hook(lambda point, args, acts: acts * 2)
    expected, output = theirs.training_forward_pass(step), ours.training_forward_pass(step)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.feature_acts, expected.feature_acts)


@needs_compiler
@pytest.mark.parametrize("architecture", CONFIGS)
def test_under_autocast_only_the_encoder_s_product_is_rounded(architecture):
    theirs, ours = make_pair(
        architecture, rescale_acts_by_decoder_norm=False, normalize_activations="none"
    )
    step = step_input(ours, 9)
    with torch.autocast("cpu", torch.bfloat16):
        expected, output = theirs.training_forward_pass(step), ours.training_forward_pass(step)
    output.loss.backward()
    assert output.feature_acts.is_sparse
    torch.testing.assert_close(output.hidden_pre, expected.hidden_pre, rtol=0, atol=0.05)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.02, atol=0)
    x = step.sae_in - ours.b_dec.detach()
    product = (x.bfloat16() @ ours.W_enc.bfloat16()).float()
    torch.testing.assert_close(output.hidden_pre, product + ours.b_enc)
    # From those latents on all is in single precision.
    acts = output.feature_acts.to_dense().detach().requires_grad_()
    W_dec, b_dec = (p.detach().requires_grad_() for p in (ours.W_dec, ours.b_dec))
    loss = (acts @ W_dec + b_dec - step.sae_in).square().sum(-1).mean()
    loss.backward()
    torch.testing.assert_close(output.loss, loss)
    grad_acts = acts.grad * (acts != 0)
    torch.testing.assert_close(ours.W_dec.grad, W_dec.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.W_enc.grad, x.T @ grad_acts, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours.b_enc.grad, grad_acts.sum(0), rtol=1e-5, atol=1e-4)
    of_encoder = ours.W_enc.detach() @ grad_acts.sum(0)
    torch.testing.assert_close(ours.b_dec.grad, b_dec.grad - of_encoder, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_elsewhere_a_step_is_sae_lens_s_own(architecture):
    theirs, ours = make_pair(architecture)
    step = step_input(ours, 9)

    def is_theirs() -> bool:
        output, expected = ours.training_forward_pass(step), theirs.training_forward_pass(step)
        return not output.feature_acts.is_sparse and torch.equal(output.loss, expected.loss)

    with doing_it("torch", sparse_products):
        assert is_theirs()
    step.sae_in = step.sae_in.view(3, 3, -1)
    assert is_theirs()
    ours.eval(), theirs.eval()
    assert is_theirs()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_it_is_saved_as_sae_lens_saves_its_own(architecture, tmp_path):
    theirs, ours = make_pair(architecture)
    for sae, name in ((theirs, "theirs"), (ours, "ours")):
        sae.save_model(tmp_path / name / "training")
        sae.save_inference_model(tmp_path / name / "inference")
    assert type(TrainingSAE.load_from_disk(tmp_path / "ours" / "training")) is type(theirs)
    for file in ("training/cfg.json", "inference/cfg.json", "inference/sae_weights.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()


def test_only_sae_lens_s_own_configs_are_replaced():
    for config, theirs, ours in CONFIGS.values():
        torch.manual_seed(0)
        sae = new_training_sae(config(d_in=4, d_sae=8, k=2), "cpu")
        torch.manual_seed(0)
        expected = theirs(config(d_in=4, d_sae=8, k=2))
        assert type(sae) is ours
        assert sae.cfg == expected.cfg
        torch.testing.assert_close(sae.state_dict(), expected.state_dict())

    class Config(TopKTrainingSAEConfig):
        """A user's own."""

    assert type(new_training_sae(Config(d_in=4, d_sae=8, k=2), "cpu")) is TopKTrainingSAE


@needs_compiler
def test_a_hook_before_a_point_is_called_too():
    _, sae = make_pair("topk")
    seen = []
    sae.hook_sae_acts_post.register_forward_pre_hook(lambda point, args: seen.append(args))
    sae.training_forward_pass(step_input(sae, 6))
    assert seen
