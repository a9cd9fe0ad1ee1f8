"""Transcoders on a vision transformer: input and output hook from one forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import SAE

from tests.training.small_run import (
    D_IN,
    D_SAE,
    sae_config,
    small_config,
    small_images,
    small_model,
)
from vit_sae_plugin.activations import ViTActivationsStore
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.saes import SkipTranscoderTrainingSAEConfig
from vit_sae_plugin.training import ViTSAETrainingRunner, read_metrics
from vit_sae_plugin.training import runner as runner_module

HOOKS = {"hook_name": "blocks.0.ln2.hook_normalized", "hook_name_out": "blocks.0.hook_mlp_out"}


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def images():
    return small_images()


def _config(folder: Any, **changes: Any):
    sae = SkipTranscoderTrainingSAEConfig(d_in=D_IN, d_out=D_IN, d_sae=D_SAE, l1_coefficient=1e-3)
    return small_config(folder, **{"sae": sae, "device": "cpu", **HOOKS, **changes})


def test_both_hooks_are_read_in_one_forward_pass(model, images) -> None:
    store = ViTActivationsStore(
        model,
        images,
        **HOOKS,
        token_kind="patches",
        train_batch_size_tokens=160,
        store_batch_size_images=10,
        n_batches_in_buffer=1,
        with_coordinates=True,
    )
    next(store)  # a tower is checked at its first pass
    passes = []
    block = model.bare_model.visual.transformer.resblocks[0]
    handle = block.register_forward_hook(lambda *_: passes.append(None))
    rows = next(store)
    handle.remove()
    assert len(passes) == 1
    assert rows.shape == (160, store.d_in) == (160, 2 * D_IN)
    image, row, column = store.coordinates.T
    pixels = torch.stack([model.preprocess(images.record(int(i)).load()) for i in image])
    with torch.no_grad():
        _, cache = model.run_with_cache(pixels, names_filter=list(HOOKS.values()))
    token = 1 + row * 4 + column
    expected = [cache[name][torch.arange(160), token] for name in HOOKS.values()]
    torch.testing.assert_close(rows, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)


def test_a_transcoder_trains_is_saved_and_splices(model, images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runner_module, "open_images", lambda given, **_: images)
    config = _config(tmp_path, eval_dataset_path="held out", n_eval_images=8, training_tokens=7680)
    ViTSAETrainingRunner(config, images, model).run()
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["explained_variance"].iloc[-1] > metrics["explained_variance"].iloc[0] + 0.2
    assert metrics["held_out_explained_variance"].iloc[-1] == pytest.approx(
        metrics["explained_variance"].iloc[-1], abs=0.2
    )

    sae = SAE.load_from_disk(tmp_path / "sae")
    assert sae.cfg.architecture() == "skip_transcoder"
    assert sae.W_skip.abs().max() > 0
    attached = AttachedSAE(model, sae)
    assert attached.is_transcoder
    pixels = torch.stack([model.preprocess(images.record(index).load()) for index in range(3)])
    read: list[torch.Tensor] = []

    def capture(value, hook):
        read.append(value)

    def replace(value, hook):
        spliced = value.clone()
        spliced[:, 1:] = sae(read[0][:, 1:])
        return spliced

    hooks = list(zip(HOOKS.values(), (capture, replace), strict=True))
    with torch.no_grad():
        expected = model.run_with_hooks(pixels, fwd_hooks=hooks)
        torch.testing.assert_close(attached.splice(pixels), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(pixels), expected, atol=1e-3)
    ViTSAETrainingRunner.resume(tmp_path, images, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_name_out": None}, "None for skip_transcoder; want the hook that it reconstructs"),
        ({"sae": sae_config("topk")}, "hook_mlp_out' for topk; want None: it is no transcoder"),
        ({"hook_name_out": "blocks.0.hook_mlp_uot"}, "near names: blocks.0.hook_mlp_out"),
        (
            {"hook_name_out": "blocks.0.mlp.hook_post"},
            "d_in is 32 and sae.d_out 32, but .* have 160 together",
        ),
        (
            {"hook_name_out": "hook_image_embed", "token_kind": "all"},
            "17, hook_image_embed has 1 tokens; want",
        ),
    ],
)
def test_hooks_that_make_no_transcoder_are_refused(changes, message, images, model) -> None:
    if changes.get("hook_name_out") == "hook_image_embed":
        changes |= {"sae": SkipTranscoderTrainingSAEConfig(d_in=32, d_out=24, d_sae=96)}
    with pytest.raises(ValueError, match=message):
        ViTSAETrainingRunner(_config(None, **changes), images, model).run()
