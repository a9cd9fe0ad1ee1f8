"""Whole runs: every architecture learns, is saved, loads again, and goes on where it was."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from sae_lens import SAE, LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor

from tests.training.small_run import (
    D_IN,
    SAE_SETTINGS,
    sae_config,
    small_config,
    small_images,
    small_model,
)
from vit_sae_plugin import atomic_files
from vit_sae_plugin.activations import ActivationSource
from vit_sae_plugin.cli.error_lines import error_line
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.training import (
    DivergedError,
    TrainingInterruptedError,
    ViTSAETrainingRunner,
)
from vit_sae_plugin.training.divergence import DivergenceWatch


@pytest.fixture(scope="module")
def model() -> HookedViT:
    return small_model()


@pytest.fixture(scope="module")
def images():
    return small_images()


@pytest.fixture
def runner_of(model, images):
    def make(folder: Path | None, *args: Any, **changes: Any) -> ViTSAETrainingRunner:
        return ViTSAETrainingRunner(small_config(folder, *args, **changes), images, model)

    return make


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _rows() -> Tensor:
    return torch.randn(50, D_IN, generator=torch.Generator().manual_seed(1)) + 0.1


def _expected_latents(sae: TrainingSAE, rows: Tensor) -> Tensor:
    """What a trained SAE does at inference."""
    if "batchtopk" not in sae.cfg.architecture():
        return sae.encode(rows)
    # BatchTopK SAEs are saved as JumpReLU SAEs with the threshold they have learned
    _, hidden_pre = sae.encode_with_hidden_pre(rows)
    return hidden_pre * (hidden_pre > sae.topk_threshold)


def _same_state(one: TrainingSAE, other: TrainingSAE) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("architecture", SAE_SETTINGS)
@torch.no_grad()
def test_every_architecture_learns_and_loads_again(
    architecture, runner_of, images, model, tmp_path
) -> None:
    with torch.enable_grad():
        sae = runner_of(
            tmp_path, architecture, training_tokens=80 * 128, store_batch_size_images=20
        ).run()
    metrics = _metrics(tmp_path)
    assert [line["step"] for line in metrics] == list(range(5, 81, 5))
    assert metrics[-1]["n_tokens"] == 80 * 128
    first, last = metrics[0], metrics[-1]
    assert last["mse_loss"] < 0.6 * first["mse_loss"]
    assert last["explained_variance"] > first["explained_variance"] + 0.2
    assert {"loss", "l0", "n_dead_latents", "tokens_per_second", "grad_norm"} <= last.keys()

    loaded = SAE.load_from_disk(tmp_path / "sae")
    rows = _rows()
    latents = _expected_latents(sae.eval(), rows)
    assert (latents > 0).any()
    torch.testing.assert_close(loaded.encode(rows), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded(rows), sae.decode(latents), rtol=1e-4, atol=1e-5)

    source = ActivationSource.from_metadata(loaded.cfg.metadata)
    assert source.to_metadata().items() >= {"token_kind": "patches", "grid": [4, 4]}.items()
    pixels = torch.stack([model.preprocess(images.record(0).load())])
    assert source.activations(model, pixels).shape == (1, 16, D_IN)


@pytest.mark.parametrize(
    "architecture",
    ["standard", "gated", "batchtopk", "matryoshka_batchtopk", "patchsae", "topk_ghost"],
)
def test_interrupted_anywhere_a_run_ends_with_the_same_weights(
    architecture, runner_of, images, model, tmp_path
) -> None:
    settings: dict[str, Any] = {"training_tokens": 45 * 128}
    n_for_scale = 0
    if architecture == "standard":  # also the estimate of the input's scale, and clipped AdamW
        settings |= {
            "sae": sae_config(architecture, normalize_activations="expected_average_only_in"),
            "clip_grad_norm": 0.5,
            "optimizer": "adamw",
            "weight_decay": 0.1,
            "lr_decay_steps": 9,
        }
        n_for_scale = 4
    whole = runner_of(tmp_path / "whole", architecture, **settings).run()

    runner = runner_of(tmp_path / "cut", architecture, **settings)
    _ctrl_c_after(
        runner, 37 + n_for_scale
    )  # in the third buffer, and past a sparsity window of 35 steps
    with pytest.raises(TrainingInterruptedError, match=r"37 of 45 .* saved\. Go on with: vit-sae "):
        runner.run()
    resumed = ViTSAETrainingRunner.resume(tmp_path / "cut", images, model)
    _ctrl_c_after(resumed, 3)
    with pytest.raises(TrainingInterruptedError, match="40 of 45"):
        resumed.run()
    ended = ViTSAETrainingRunner.resume(tmp_path / "cut", images, model).run()

    assert _same_state(whole, ended)
    assert [line["step"] for line in _metrics(tmp_path / "cut")] == list(range(5, 46, 5))
    for name in ("sae_weights.safetensors", "sparsity.safetensors"):
        assert (tmp_path / "whole/sae" / name).read_bytes() == (
            tmp_path / "cut/sae" / name
        ).read_bytes()


def _ctrl_c_after(
    runner: ViTSAETrainingRunner,
    n_batches: int,
    send: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGINT),
) -> None:
    """Press Ctrl-C while the run waits for the batch after that many."""
    serve, served = runner.store.__next__, []

    class Impatient(type(runner.store)):
        def __next__(self):
            served.append(None)
            if len(served) == n_batches + 1:
                send()
            return serve()

    runner.store.__class__ = Impatient


def test_sigterm_during_a_step_saves_after_it(runner_of, images, model, tmp_path) -> None:
    settings = {"training_tokens": 20 * 128}
    whole = runner_of(None, **settings).run()
    runner = runner_of(tmp_path, **settings)
    step = runner.sae.training_forward_pass

    def terminated(step_input):
        if step_input.n_training_steps == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(step_input=step_input)

    runner.sae.training_forward_pass = terminated
    with pytest.raises(TrainingInterruptedError, match="13 of 20"):
        runner.run()
    assert _same_state(whole, ViTSAETrainingRunner.resume(tmp_path, images, model).run())


def test_ctrl_c_in_a_terminal_reaches_the_workers_too(runner_of, images, model, tmp_path) -> None:
    settings = {"training_tokens": 20 * 128, "n_workers": 1}
    child = os.fork()
    if child == 0:
        os.setsid()  # a process group of its own, as a shell gives each command
        runner = runner_of(tmp_path / "cut", **settings)
        _ctrl_c_after(runner, 9, send=lambda: os.killpg(0, signal.SIGINT))
        try:
            runner.run()
        except TrainingInterruptedError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert _metrics(tmp_path / "cut")[-1]["step"] == 5
    ended = ViTSAETrainingRunner.resume(tmp_path / "cut", images, model, n_workers=0).run()
    assert _same_state(runner_of(None, training_tokens=20 * 128).run(), ended)


def test_the_seed_is_honoured(runner_of) -> None:
    settings = {"training_tokens": 10 * 128}
    torch.manual_seed(0)
    first = runner_of(None, **settings).run()
    torch.manual_seed(1)
    assert _same_state(first, runner_of(None, **settings).run())
    assert not _same_state(first, runner_of(None, **settings, seed=4).run())


def test_a_run_leaves_the_global_generator_alone(runner_of) -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    runner_of(None, training_tokens=4 * 128).run()
    assert torch.equal(torch.rand(2), expected)


def test_a_finished_run_can_be_resumed_to_no_effect(runner_of, images, model, tmp_path) -> None:
    runner_of(tmp_path, training_tokens=4 * 128).run()
    before = (tmp_path / "sae/sae_weights.safetensors").read_bytes()
    ViTSAETrainingRunner.resume(tmp_path, images, model).run()
    assert (tmp_path / "sae/sae_weights.safetensors").read_bytes() == before


def test_requested_checkpoints_are_kept_and_open_in_saelens(runner_of, tmp_path) -> None:
    runner_of(tmp_path, training_tokens=12 * 128, n_checkpoints=3, checkpoint_every_minutes=0).run()
    folders = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    # evenly spaced ones as SAELens places them, and the newest two
    assert folders == [f"step_{step:09d}" for step in (4, 7, 10, 11, 12)]
    sae = SAE.load_from_disk(tmp_path / "checkpoints/step_000000004")
    assert sae.cfg.metadata.hook_name == "blocks.0.hook_resid_post"


def test_input_scaling_is_recorded_until_it_is_in_the_weights(runner_of, tmp_path) -> None:
    sae = sae_config("topk", normalize_activations="expected_average_only_in")
    runner = runner_of(tmp_path, "topk", sae=sae, training_tokens=4 * 128)
    runner.run()
    checkpoint = SAE.load_from_disk(tmp_path / "checkpoints/step_000000004")
    finished = SAE.load_from_disk(tmp_path / "sae")
    scaling = checkpoint.cfg.metadata.input_scaling
    assert scaling > 0
    assert finished.cfg.metadata.input_scaling is None
    rows = _rows()
    torch.testing.assert_close(
        finished(rows), checkpoint(rows * scaling) / scaling, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("architecture", ["standard", "batchtopk", "jumprelu"])
@torch.no_grad()
def test_a_checkpoint_holds_the_whitening_of_its_input(
    architecture, runner_of, model, images, tmp_path
) -> None:
    sae = sae_config(architecture, normalize_activations="covariance_whitening")
    settings = {"sae": sae, "n_batches_for_norm_estimate": 8, "training_tokens": 30 * 128}
    with torch.enable_grad():
        whole = runner_of(tmp_path / "whole", architecture, **settings).run()
    checkpoint = SAE.load_from_disk(tmp_path / "whole/checkpoints/step_000000030")
    finished = SAE.load_from_disk(tmp_path / "whole/sae")
    rows = _rows()
    assert (finished.encode(rows) > 0).any()
    torch.testing.assert_close(checkpoint(rows), finished(rows))
    assert checkpoint.cfg.normalize_activations == "none"

    runner = runner_of(tmp_path / "cut", architecture, **settings)
    _ctrl_c_after(runner, 8 + 20)
    with torch.enable_grad(), pytest.raises(TrainingInterruptedError):
        runner.run()
    with torch.enable_grad():
        ended = ViTSAETrainingRunner.resume(tmp_path / "cut", images, model).run()
    assert _same_state(whole, ended)


def test_a_resumed_run_clears_away_what_was_cut_off(runner_of, model, images, tmp_path) -> None:
    runner_of(tmp_path, training_tokens=2 * 128).run()
    half = [tmp_path / ".aside-1-2-3", tmp_path / "checkpoints" / ".aside-1-2-3"]
    for path in half:
        path.mkdir()
    ViTSAETrainingRunner.resume(tmp_path, images, model).run()
    assert not any(path.exists() for path in half)


def test_what_is_saved_can_be_read_by_those_whom_the_user_lets(runner_of, tmp_path) -> None:
    before = os.umask(0o027)
    try:
        runner_of(tmp_path / "run", training_tokens=2 * 128).run()
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".yaml", ".jsonl", ".pt"}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
        path.name: "0o640" for path in files
    }


def test_the_saved_l0_is_that_of_the_end(runner_of, model, images, tmp_path) -> None:
    runner_of(tmp_path, "topk", training_tokens=6 * 128).run()
    assert SAE.load_from_disk(tmp_path / "sae").cfg.metadata.l0 == 6
    runner = runner_of(tmp_path / "patchsae", training_tokens=40 * 128, lr=0.01)
    runner.run()
    lines = _metrics(tmp_path / "patchsae")
    l0 = [SAE.load_from_disk(tmp_path / "patchsae/sae").cfg.metadata.l0]
    assert lines[-1]["l0"] < lines[0]["l0"]
    ViTSAETrainingRunner.resume(tmp_path / "patchsae", images, model).run()
    l0.append(SAE.load_from_disk(tmp_path / "patchsae/sae").cfg.metadata.l0)
    assert l0 == [lines[-1]["l0"]] * 2


def test_images_that_cannot_be_used_are_listed_once(model, images, tmp_path) -> None:
    class WithHoles(type(images)):
        def record(self, index):
            record = super().record(index)
            return record if index % 9 else type(record)(index, f"i{index}", None, b"")

    holes = WithHoles(images._images)
    config = small_config(tmp_path, training_tokens=10 * 128, n_batches_in_buffer=2)
    runner = ViTSAETrainingRunner(config, holes, model)
    _ctrl_c_after(runner, 8)
    with pytest.raises(TrainingInterruptedError):
        runner.run()
    ViTSAETrainingRunner.resume(tmp_path, holes, model).run()
    lines = (tmp_path / "skipped_images.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == ["i0", "i9", "i18", "i27", "i36"]


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    runner_of, tmp_path, late, monkeypatch
) -> None:
    monkeypatch.setattr(DivergenceWatch, "_is_late", staticmethod(lambda device: late))
    runner = runner_of(tmp_path, "standard", checkpoint_every_minutes=0)
    step = runner.sae.training_forward_pass

    def diverging(step_input):
        output = step(step_input=step_input)
        if step_input.n_training_steps == 6:
            output.loss = output.loss * float("nan")
        return output

    runner.sae.training_forward_pass = diverging
    with pytest.raises(DivergedError, match=r"loss is nan .* at step 7: .*step_000000006\)"):
        runner.run()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_000000005", "step_000000006"]
    assert not (tmp_path / "sae").exists()


def test_activations_that_are_not_finite_are_named_as_the_cause(model, images) -> None:
    def overflowing(image):
        return model.preprocess(image) * float("inf")

    broken = HookedViT.from_module(model.bare_model, preprocess=overflowing)
    with pytest.raises(DivergedError, match="the activations aren't finite"):
        ViTSAETrainingRunner(small_config(None, "standard"), images, broken).run()


def test_a_full_disk_ends_a_run_whose_last_checkpoint_stays(
    runner_of, images, model, tmp_path, monkeypatch
) -> None:
    whole = runner_of(None, training_tokens=9 * 128).run()
    real, checkpoints = atomic_files._sync, tmp_path / "checkpoints"

    def full(path):
        if path.parent.name.startswith(".aside-") and (checkpoints / "step_000000004").is_dir():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files, "_sync", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            runner_of(tmp_path, training_tokens=9 * 128, checkpoint_every_minutes=0).run()
    line = error_line(caught.value)
    assert line is not None
    assert line.startswith(f"the disk is full (at {checkpoints}")
    assert line.endswith("goes on with vit-sae train --resume FOLDER)")
    names = sorted(path.name for path in checkpoints.iterdir())  # nothing half, which takes room
    assert names == ["step_000000003", "step_000000004"]
    assert not (tmp_path / "sae").exists()
    ended = ViTSAETrainingRunner.resume(tmp_path, images, model).run()
    assert _same_state(whole, ended)


def test_a_damaged_newest_checkpoint_is_passed_over(runner_of, images, model, tmp_path) -> None:
    settings = {"training_tokens": 9 * 128}
    whole = runner_of(None, **settings).run()
    runner_of(tmp_path, **settings, checkpoint_every_minutes=0).run()
    weights = tmp_path / "checkpoints/step_000000009/sae_weights.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"step_000000009 is damaged .* one before it is used"):
        ended = ViTSAETrainingRunner.resume(tmp_path, images, model).run()
    assert _same_state(whole, ended)


def test_a_changed_run_is_not_resumed(runner_of, images, model, tmp_path) -> None:
    runner_of(tmp_path, training_tokens=2 * 128).run()
    with pytest.raises(ValueError, match=r"lr: 0\.002 in the run, 0\.1 now; seed: 3 in the run"):
        ViTSAETrainingRunner.resume(tmp_path, images, model, lr=0.1, seed=4)
    changed = sae_config(l1_coefficient=1.0)
    with pytest.raises(ValueError, match=r"sae\.l1_coefficient: 0\.001 in the run, 1\.0 now"):
        ViTSAETrainingRunner.resume(tmp_path, images, model, sae=changed)
    with pytest.raises(ValueError, match=r"other model or images .*images: "):
        ViTSAETrainingRunner.resume(tmp_path, small_images(39), model).run()
    finer = HookedViT.from_module(model.bare_model, preprocess=lambda image: None)
    with pytest.raises(ValueError, match=r"other model or images .*model\.preprocessing: "):
        ViTSAETrainingRunner.resume(tmp_path, images, finer).run()
    ViTSAETrainingRunner.resume(tmp_path, images, model, n_workers=1, log_every_n_steps=1)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (("lr: 0.002", "lr: 0.003"), r"lr: 0\.002 in the run, 0\.003 now"),
        (("seed: 3", "seed: 0"), "seed: 3 in the run, 0 now"),
        (("n_batches_in_buffer: 6", "n_batches_in_buffer: 5"), "n_batches_in_buffer: 6 in the run"),
        (("l1_coefficient: 0.001", "l1_coefficient: 1"), r"sae\.l1_coefficient: 0\.001 in the run"),
        (("adam_beta1: 0.9", "adam_beta1: 0.5"), r"adam_beta1: 0\.9 in the run, 0\.5 now"),
        (("token_kind: patches", "token_kind: all"), "token_kind: 'patches' in the run"),
    ],
)
def test_an_edited_settings_file_is_noticed(edit, told, runner_of, model, images, tmp_path) -> None:
    runner_of(tmp_path, training_tokens=2 * 128).run()
    path = tmp_path / "config.yaml"
    assert edit[0] in path.read_text()
    path.write_text(path.read_text().replace(*edit))
    with pytest.raises(ValueError, match=f"{told}.*; want the same, .*what may change: act_store"):
        ViTSAETrainingRunner.resume(tmp_path, images, model)


def test_every_setting_counts_or_may_change(runner_of, tmp_path) -> None:
    """Each edit of the settings is either refused or leaves the weights as they are."""
    from dataclasses import fields

    from vit_sae_plugin.training import ViTSAERunnerConfig
    from vit_sae_plugin.training.resume_checks import MAY_CHANGE, settings_that_count

    config = small_config(tmp_path)
    names = {f.name for f in fields(ViTSAERunnerConfig)} - {"sae"}
    names |= {f"sae.{f.name}" for f in fields(config.sae)} - {"sae.metadata"}
    counted = set(settings_that_count(config)) - {"sae.architecture"}
    assert counted | MAY_CHANGE == names
    assert not counted & MAY_CHANGE


def test_an_earlier_release_may_have_counted_more(tmp_path) -> None:
    from vit_sae_plugin.training.resume_checks import check_same_settings, settings_that_count

    config = small_config(tmp_path)
    run = settings_that_count(config) | {"n_batches_for_norm_estimate": 1000}
    check_same_settings(run, config)
    with pytest.raises(ValueError, match=r"lr: 0\.5 in the run"):
        check_same_settings(run | {"lr": 0.5}, config)


def test_a_run_with_a_constant_rate_can_be_made_longer(runner_of, model, images, tmp_path) -> None:
    longer = {"training_tokens": 9 * 128}
    whole = runner_of(tmp_path / "whole", **longer).run()
    runner_of(tmp_path / "run", training_tokens=5 * 128).run()
    ended = ViTSAETrainingRunner.resume(tmp_path / "run", images, model, **longer).run()
    assert _same_state(whole, ended)
    # the file says what the run has become
    ViTSAETrainingRunner.resume(tmp_path / "run", images, model)
    assert "training_tokens: 1152" in (tmp_path / "run/config.yaml").read_text()
    runner_of(tmp_path / "decayed", training_tokens=20 * 128, lr_decay_steps=3).run()
    with pytest.raises(ValueError, match="training_tokens: 2560 in the run, 3840 now"):
        ViTSAETrainingRunner.resume(tmp_path / "decayed", images, model, training_tokens=30 * 128)


def test_resumed_weights_stay_where_they_lie_in_memory(runner_of, model, images, tmp_path) -> None:
    """Products of equal weights at other alignments differ in the last bit on some processors."""
    runner_of(tmp_path, training_tokens=4 * 128).run()
    runner = ViTSAETrainingRunner.resume(tmp_path, images, model)
    places = [parameter.data_ptr() for parameter in runner.sae.parameters()]
    assert _same_state(runner.sae, runner.run())
    assert [parameter.data_ptr() for parameter in runner.sae.parameters()] == places
    assert all(place % 64 == 0 for place in places)


def test_a_folder_with_a_run_is_not_overwritten(runner_of, tmp_path) -> None:
    runner_of(tmp_path, training_tokens=128).run()
    with pytest.raises(FileExistsError, match=f"vit-sae train --resume {tmp_path}"):
        runner_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no run to resume"):
        ViTSAETrainingRunner.resume(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_name": "blocks.7.hook_resid_post"}, r"near names: blocks\.1\.hook_resid_post"),
        (
            {"hook_name": "blocks.1.mlp.hook_post"},
            "d_in is 32, but .* has width 128; want d_in=128",
        ),
        ({"device": "cuda:7"}, "device is 'cuda:7', but this machine has"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_training(runner_of, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        runner_of(None, **changes)


def test_missing_images_are_one_clear_error(model) -> None:
    with pytest.raises(ValueError, match="dataset_path is empty; want the images"):
        ViTSAETrainingRunner(small_config(None), override_model=model)


def test_saelens_config_trains(model, images, tmp_path) -> None:
    config = LanguageModelSAERunnerConfig(
        sae=sae_config("topk"),
        model_name="tiny",
        model_class_name="HookedViT",
        hook_name="blocks.0.hook_resid_post",
        seqpos_slice=(1, None),
        store_batch_size_prompts=8,
        n_batches_in_buffer=4,
        training_tokens=6 * 128,
        train_batch_size_tokens=128,
        checkpoint_path=str(tmp_path / "checkpoints"),
        output_path=str(tmp_path / "out"),
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
    )
    runner = ViTSAETrainingRunner(config, images, model)
    assert runner.cfg.n_batches_in_buffer == 1  # 4 images of 16 patches
    runner.run()
    loaded = SAE.load_from_disk(tmp_path / "out/sae")
    assert loaded.cfg.metadata.token_kind == "patches"
    assert loaded.cfg.metadata.model_class_name == "HookedViT"


def test_weights_and_biases_get_saelens_names(runner_of, tmp_path, monkeypatch) -> None:
    logged: dict[int, dict[str, Any]] = {}
    begun: dict[str, Any] = {}

    def log(metrics: dict[str, Any], step: int) -> None:
        logged.setdefault(step, {}).update(metrics)

    monkeypatch.setattr(wandb, "log", log)
    monkeypatch.setattr(wandb, "init", lambda **settings: begun.update(settings))
    for name in ("finish", "log_artifact"):
        monkeypatch.setattr(wandb, name, lambda *args, **kwargs: None)
    logger = LoggingConfig(log_to_wandb=True, log_weights_to_wandb=False, wandb_log_frequency=2)
    runner_of(tmp_path, logger=logger, training_tokens=10 * 128, feature_sampling_window=4).run()
    assert begun["name"] == "patchsae-96-LR-0.002-Tokens-1.280e+03"
    for line in _metrics(tmp_path):
        there = logged[line["step"]]
        assert there["metrics/grad_norm"] == line["grad_norm"]
        assert there["details/tokens_per_second"] == line["tokens_per_second"]
        if line["step"] % 2 == 0:
            explained = pytest.approx(line["explained_variance"], abs=1e-5)  # one less a share
            assert there["metrics/explained_variance"] == explained
            assert there["losses/overall_loss"] == line["loss"]
            assert there["sparsity/dead_features"] == line["n_dead_latents"]
    assert [step for step in logged if "metrics/l0" in logged[step]] == [2, 4, 6, 8, 10]
    assert "metrics/mean_log10_feature_sparsity" in logged[4]


def test_the_16_bit_model_and_any_hook_train(images) -> None:
    model = small_model().to(torch.bfloat16)
    config = small_config(None, "topk", hook_name="blocks.1.attn.hook_z", training_tokens=4 * 128)
    sae = ViTSAETrainingRunner(config, images, model).run()
    assert sae.W_dec.dtype == torch.float32
    assert torch.isfinite(sae.W_dec).all()
