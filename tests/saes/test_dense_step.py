"""The step in C gives what autograd gives, and makes way where it can't."""

from __future__ import annotations

import copy
import gc
from contextlib import nullcontext

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from tests.c_compiler import C_COMPILERS
from vit_sae_plugin.reused_memory import ReusedMemory
from vit_sae_plugin.saes import (
    PatchTrainingSAE,
    PatchTrainingSAEConfig,
    dense_gradients,
    dense_step,
    patch_sae,
)
from vit_sae_plugin.saes.firing_counts import CountedStepOutput
from vit_sae_plugin.training.batch_parts import step_in_parts

pytestmark = pytest.mark.skipif(not C_COMPILERS, reason="no C compiler")

D_IN, D_SAE, N_ROWS = 7, 40, 33
SETTINGS = {
    "plain": {},
    "no normalisation": {"mse_normalization": "none"},
    "no ghosts": {"use_ghost_grads": False},
    "relative penalty": {"relative_l1_coefficient": 0.3},
}


def make_sae(dtype="float64", **settings) -> PatchTrainingSAE:
    torch.manual_seed(0)
    sae = PatchTrainingSAE(
        PatchTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype=dtype, l1_coefficient=0.01, **settings)
    )
    with torch.no_grad():
        sae.b_enc.normal_()
        if settings.get("relative_l1_coefficient"):
            sae.l1_scale.fill_(0.75)
    return sae


def rows(dtype=torch.float64) -> torch.Tensor:
    made = torch.randn(N_ROWS, D_IN, generator=torch.Generator().manual_seed(1), dtype=dtype)
    made[4] = 0  # a row without a norm
    return made


def step_input(sae_in: torch.Tensor, dead=()) -> TrainStepInput:
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[list(dead)] = True
    return TrainStepInput(sae_in, {"l1": 0.05}, mask, 3, False)


def silence(sae: PatchTrainingSAE, latents) -> None:
    with torch.no_grad():
        sae.b_enc[list(latents)] = -50


def both_ways(sae, step, also=lambda output: 0.0):
    """Outputs and gradients, in C and by autograd."""
    results = []
    for way in ("C", "autograd"):
        one = copy.deepcopy(sae)
        with pytest.MonkeyPatch.context() as patch:
            if way == "autograd":
                patch.setattr(patch_sae, "step_kernels", lambda dtype: None)
            output = one.training_forward_pass(step)
        assert isinstance(output, CountedStepOutput) == (way == "C")
        (output.loss + also(output)).backward()
        results.append((output, {name: p.grad for name, p in one.named_parameters()}))
    return results


def assert_same(results, rtol=1e-9, atol=1e-11) -> None:
    (fast, fast_grads), (slow, slow_grads) = results
    for name in ("sae_out", "feature_acts", "hidden_pre", "loss"):
        mine, other = getattr(fast, name), getattr(slow, name)
        torch.testing.assert_close(mine, other, rtol=rtol, atol=atol, msg=name)
    torch.testing.assert_close(fast.losses, slow.losses, rtol=rtol, atol=atol)
    assert torch.equal(fast.n_fired, slow.feature_acts.bool().sum(0).to(fast.n_fired.dtype))
    for name, gradient in slow_grads.items():
        torch.testing.assert_close(fast_grads[name], gradient, rtol=rtol, atol=atol, msg=name)
    assert slow_grads["b_dec"].abs().max() > 0


@pytest.fixture(params=[64, 16], ids=["one block", "three blocks"])
def width(request, monkeypatch):
    monkeypatch.setattr(dense_step, "MAX_WIDTH", request.param)


@pytest.fixture(params=[(0, 0), (0, 1), (1, 1)], ids=["none", "gradients", "all"])
def from_lists(request, monkeypatch):
    """What of a step is worked out from lists of active latents, however many are active."""
    monkeypatch.setattr(dense_step, "MAX_SHARE_DECODED", request.param[0])
    monkeypatch.setattr(dense_step, "MAX_SHARE_LISTED", request.param[1])
    return request.param


@pytest.mark.usefixtures("width", "from_lists")
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(
    ("silent", "dead"),
    [
        ((), ()),
        ((), (2, 5)),  # dead by the trainer's count, but they fire
        (range(10), ()),
        (range(10), range(4, 16)),  # silent, ghosts, and both
        (range(1, D_SAE), range(1, D_SAE)),
        (range(D_SAE), range(30)),
    ],
)
def test_losses_and_gradients_are_autograds(settings, silent, dead):
    sae = make_sae(**SETTINGS[settings])
    silence(sae, silent)
    assert_same(both_ways(sae, step_input(rows(), dead)))


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("dead", [(), range(4, 16)], ids=["no ghosts", "ghosts"])
def test_dense_products_are_autocasts(dead, from_lists, monkeypatch):
    """Each in its precision, and none of what is worked out from lists."""
    formats = []
    for module in (dense_step, dense_gradients):

        def multiply(a, b, dtype, *args, own=module.multiply, **kwargs):
            formats.append(dtype)
            return own(a, b, dtype, *args, **kwargs)

        monkeypatch.setattr(module, "multiply", multiply)
    sae, step = make_sae("float32"), step_input(rows(torch.float32), dead)
    silence(sae, range(10))
    assert_same(both_ways(sae, step), rtol=1e-5, atol=1e-6)
    assert set(formats) == {None}
    formats.clear()
    rounded = copy.deepcopy(sae)
    with torch.autocast("cpu", torch.bfloat16):
        output = rounded.training_forward_pass(step)
    output.loss.backward()
    assert set(formats) == {torch.bfloat16}
    if not dead:
        n_blocks = len(dense_step._blocks(D_SAE))
        assert len(formats) == n_blocks * {(0, 0): 5, (0, 1): 2, (1, 1): 1}[from_lists]
    x = step.sae_in - sae.b_dec.detach()
    product = (x.bfloat16() @ sae.W_enc.bfloat16()).float()
    torch.testing.assert_close(output.hidden_pre, product + sae.b_enc)

    # By autograd under autocast, from the same latents on.
    plain = sae.encode_with_hidden_pre

    def encode(x):
        with torch.autocast("cpu", enabled=False):
            hidden_pre = plain(x)[1]
        hidden_pre = output.hidden_pre.detach() + hidden_pre - hidden_pre.detach()
        return hidden_pre.relu(), hidden_pre

    monkeypatch.setattr(sae, "encode_with_hidden_pre", encode)
    monkeypatch.setattr(patch_sae, "step_kernels", lambda dtype: None)
    with torch.autocast("cpu", torch.bfloat16):
        expected = sae.training_forward_pass(step)
    expected.loss.backward()
    torch.testing.assert_close(output.losses, expected.losses, rtol=0.01, atol=0)
    of_rounded = dict(rounded.named_parameters())
    for name, parameter in sae.named_parameters():
        difference = (of_rounded[name].grad - parameter.grad).norm() / parameter.grad.norm()
        assert difference < 0.05, f"{name} differs by {difference}"


@pytest.mark.usefixtures("from_lists")
def test_in_single_precision_too():
    sae = make_sae("float32")
    silence(sae, range(10))
    results = both_ways(sae, step_input(rows(torch.float32), range(4, 16)))
    assert_same(results, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("width", "from_lists")
@pytest.mark.parametrize("silent", [(), range(10)])
def test_every_output_has_its_gradient(silent):
    sae = make_sae()
    silence(sae, silent)

    def also(output):
        parts = (output.sae_out, output.feature_acts, output.hidden_pre)
        return sum((i + 1) * (part**2).mean() for i, part in enumerate(parts))

    assert_same(both_ways(sae, step_input(rows(), (2, 3)), also))


@pytest.mark.usefixtures("from_lists")
def test_single_losses_can_be_differentiated():
    sae = make_sae()
    for name in ("mse_loss", "l1_loss", "ghost_grad_loss"):
        results = both_ways(
            sae,
            step_input(rows(), range(4)),
            lambda output, name=name: 7 * output.losses[name] - output.loss,
        )
        (_, fast), (_, slow) = results
        for parameter, gradient in slow.items():
            torch.testing.assert_close(fast[parameter], gradient, msg=f"{name} {parameter}")


@pytest.mark.usefixtures("from_lists")
def test_nan_reaches_the_loss_and_the_gradients():
    sae, sae_in = make_sae(), rows()
    sae_in[3, 2] = torch.nan
    output = sae.training_forward_pass(step_input(sae_in))
    output.loss.backward()
    assert isinstance(output, CountedStepOutput)
    assert output.loss.isnan()
    assert sae.W_enc.grad.isnan().any()


@pytest.mark.usefixtures("from_lists")
def test_outputs_that_are_kept_are_not_written_over():
    sae = make_sae("float32")
    kept = sae.training_forward_pass(step_input(rows(torch.float32)))
    kept.loss.backward()
    acts, gradient = kept.feature_acts.detach().clone(), sae.W_enc.grad.clone()
    gradients = sae.W_enc.grad
    for _ in range(3):
        sae.W_enc.grad = None
        sae.training_forward_pass(step_input(2 * rows(torch.float32))).loss.backward()
    assert torch.equal(kept.feature_acts, acts)
    assert torch.equal(gradients, gradient)


@pytest.mark.parametrize("n_dead", [0, 1024, 4096])
@pytest.mark.parametrize("n_parts", [1, 4])
def test_a_wide_step_keeps_one_buffer_and_the_dead_latents(n_dead, n_parts, monkeypatch):
    # Counted is all memory that the step's large arrays come from, whether in use or kept.
    memory, peak = ReusedMemory(), [0]
    take = memory._take

    def counted(n_bytes):
        block = take(n_bytes)
        peak[0] = max(peak[0], sum(held.nbytes for held, _ in memory._blocks))
        return block

    monkeypatch.setattr(memory, "_take", counted)
    monkeypatch.setattr(dense_gradients, "REUSED_MEMORY", memory)
    monkeypatch.setattr(dense_step, "MAX_WIDTH", 512)
    n_rows, d_sae = 256, 4096
    sae = PatchTrainingSAE(PatchTrainingSAEConfig(d_in=8, d_sae=d_sae))
    dead = torch.arange(d_sae) < n_dead
    with torch.no_grad():
        sae.b_enc[dead] = -50
    sae_in = torch.randn(n_rows, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        step_in_parts(
            sae, TrainStepInput(sae_in, {"l1": 0.05}, dead, 3, False), n_parts, nullcontext()
        )
        sae.zero_grad()
    part = 4 * n_rows / n_parts * d_sae
    gradients = 4 * 2 * 8 * d_sae
    n_buffers = (peak[0] - gradients) / part
    # the latents of one block of eight, and their gradient
    assert n_buffers < 1 + n_dead / d_sae + 2 / 8 + 0.05, n_buffers


class _Doubled(PatchTrainingSAE):
    def encode_with_hidden_pre(self, x):
        acts, hidden_pre = super().encode_with_hidden_pre(x)
        return 2 * acts, hidden_pre


def test_who_needs_something_else_gets_the_plain_way():
    def is_fast(sae, sae_in):
        return isinstance(sae.training_forward_pass(step_input(sae_in)), CountedStepOutput)

    sae, sae_in = make_sae(), rows()
    assert is_fast(sae, sae_in)
    assert not is_fast(sae, sae_in[None])
    assert not is_fast(sae, sae_in.float())
    assert not is_fast(sae, sae_in.clone().requires_grad_())
    assert not is_fast(_Doubled(sae.cfg), sae_in)
    assert not is_fast(make_sae(normalize_activations="layer_norm"), sae_in)
    sae.activation_fn = nn.Softplus()
    assert not is_fast(sae, sae_in)


@pytest.mark.parametrize("kind", ["fwd", "bwd"])
def test_hooks_see_and_change_the_step(kind):
    sae, seen = make_sae(), []

    def double(value, hook):
        seen.append(value)
        return 2 * value if kind == "fwd" else (2 * value,)

    sae.hook_sae_acts_post.add_hook(double, kind)
    output = sae.training_forward_pass(step_input(rows()))
    output.loss.backward()
    assert len(seen) == 1
    sae.reset_hooks()
    assert not dense_step.has_hooks(sae)
    assert isinstance(sae.training_forward_pass(step_input(rows())), CountedStepOutput)


def test_the_compiled_step_is_the_plain_one():
    sae = make_sae("float32")
    compiled = torch.compile(sae.training_forward_pass, backend="eager", fullgraph=True)
    step = step_input(rows(torch.float32), (1,))
    output = compiled(step)
    assert not isinstance(output, CountedStepOutput)
    torch.testing.assert_close(output.loss, sae.training_forward_pass(step).loss)


def test_a_step_is_freed_when_it_is_over_not_when_garbage_is_collected(monkeypatch):
    kept, ghosts = [], dense_step._ghosts

    def noted(*args):
        found = ghosts(*args)
        kept.append(StorageWeakRef(found[0].acts.untyped_storage()))
        return found

    monkeypatch.setattr(dense_step, "_ghosts", noted)
    sae = make_sae()
    gc.disable()
    try:
        sae.training_forward_pass(step_input(rows(), dead=[3, 4])).loss.backward()
        assert [ref.expired() for ref in kept] == [True]
    finally:
        gc.enable()
