"""Several SAEs on one stream: each is what it would be alone, whatever happens to the others."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from sae_lens import SAE, LoggingConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE

from tests.training.small_run import sae_config, small_config, small_images, small_model
from vit_sae_plugin.activations.cache import write_cache
from vit_sae_plugin.cli.error_lines import error_line
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.training import (
    DivergedError,
    Sweep,
    SweepResults,
    TrainingInterruptedError,
    ViTSAERunnerConfig,
    ViTSAESweepRunner,
    ViTSAETrainingRunner,
)
from vit_sae_plugin.training.vit_sae_trainer import ViTSAETrainer

ROWS = 128


@pytest.fixture(scope="module")
def model() -> HookedViT:
    return small_model()


@pytest.fixture(scope="module")
def images():
    return small_images()


def _members() -> dict[str, ViTSAERunnerConfig]:
    """Architectures, widths, hooks, rates, schedules and budgets, as different as can be."""
    return {
        "patchsae": small_config(None, training_tokens=45 * ROWS),
        "wide": small_config(
            None,
            "topk_ghost",
            sae=sae_config("topk_ghost", d_sae=160, k=9),
            training_tokens=45 * ROWS,
            lr=5e-4,
            optimizer="adamw",
            weight_decay=0.1,
            lr_decay_steps=9,
            clip_grad_norm=0.5,
        ),
        "deeper": small_config(
            None, "batchtopk", hook_name="blocks.1.hook_resid_post", training_tokens=45 * ROWS
        ),
        "short": small_config(
            None, "gated", training_tokens=21 * ROWS, lr_scheduler_name="cosineannealing"
        ),
    }


@pytest.fixture(scope="module")
def alone(model, images, tmp_path_factory) -> Path:
    """Each member as a run by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for name, cfg in _members().items():
        settings = {**cfg.to_dict(), "output_path": str(folder / name)}
        ViTSAETrainingRunner(ViTSAERunnerConfig.from_dict(settings), images, model).run()
    return folder


def _interrupt_in_step(sae: TrainingSAE[Any], n_steps: int) -> None:
    """Press Ctrl-C while this SAE is in the step after that many."""

    def press(output):
        os.kill(os.getpid(), signal.SIGINT)
        return output

    _change_step(sae, n_steps, press)


def _change_step(sae: TrainingSAE[Any], n_steps: int, change: Callable[[Any], Any]) -> None:
    """Do something to what the SAE's step after that many gives."""
    step = sae.training_forward_pass

    def changed(step_input):
        output = step(step_input=step_input)
        return change(output) if step_input.n_training_steps == n_steps else output

    sae.training_forward_pass = changed


def _same_files(one: Path, other: Path) -> None:
    for name in ("sae/sae_weights.safetensors", "sae/sparsity.safetensors", "sae/cfg.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), (one.name, name)
    ours, theirs = (_metrics(folder) for folder in (one, other))
    pd.testing.assert_frame_equal(ours, theirs)


def _metrics(folder: Path) -> pd.DataFrame:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return pd.DataFrame(lines).filter(regex="^(?!tokens_per_second)")


def test_each_member_is_the_same_sae_as_alone(alone, model, images, tmp_path) -> None:
    results = ViTSAESweepRunner(_members(), tmp_path, images, model).run()
    for name in _members():
        _same_files(alone / name, tmp_path / name)
    assert list(results.table()["status"]) == ["finished"] * 4
    assert list(results.table()["n_tokens"]) == [45 * ROWS] * 3 + [21 * ROWS]
    saved = SAE.load_from_disk(tmp_path / "deeper/sae").cfg.metadata
    assert saved.hook_name == "blocks.1.hook_resid_post"


def test_an_interrupted_sweep_goes_on_to_the_same_end(alone, model, images, tmp_path) -> None:
    runner = ViTSAESweepRunner(_members(), tmp_path, images, model)
    _interrupt_in_step(runner.saes["wide"], 12)
    with pytest.raises(TrainingInterruptedError, match=r"13 of 45 .*--resume"):
        runner.run()
    steps = {path.name for path in tmp_path.glob("*/checkpoints/step_*")}
    assert steps == {"step_000000013"}
    # one member goes on by itself, for a while; another loses its checkpoints
    single = ViTSAETrainingRunner.resume(tmp_path / "patchsae", images, model)
    _interrupt_in_step(single.sae, 18)
    with pytest.raises(TrainingInterruptedError, match="19 of 45"):
        single.run()
    shutil.rmtree(tmp_path / "deeper" / "checkpoints")
    resumed = ViTSAESweepRunner.resume(tmp_path, images, model)
    _interrupt_in_step(resumed.saes["wide"], 29)
    with pytest.raises(TrainingInterruptedError, match="30 of 45"):
        resumed.run()
    assert (tmp_path / "short/sae").is_dir()
    ViTSAESweepRunner.resume(tmp_path, images, model).run()
    for name in _members():
        _same_files(alone / name, tmp_path / name)


def test_a_member_that_diverges_is_stopped_and_the_others_go_on(
    alone, model, images, tmp_path, capsys
) -> None:
    members = {name: cfg for name, cfg in _members().items() if name != "short"}
    runner = ViTSAESweepRunner(members, tmp_path, images, model)

    def explode(output):
        output.loss = output.loss * torch.nan
        return output

    _change_step(runner.saes["wide"], 20, explode)
    _interrupt_in_step(runner.saes["deeper"], 25)
    with pytest.raises(TrainingInterruptedError, match="26 of 45"):
        runner.run()
    assert "wide is stopped, the others go on: the loss is nan" in capsys.readouterr().err

    resumed = ViTSAESweepRunner.resume(tmp_path, images, model)
    assert list(resumed.saes) == ["patchsae", "deeper"]
    table = resumed.run().table()
    for name in ("patchsae", "deeper"):
        _same_files(alone / name, tmp_path / name)
    assert table["status"].to_dict() == {
        "patchsae": "finished",
        "wide": "diverged",
        "deeper": "finished",
    }
    assert table.loc["wide", "n_tokens"] == 20 * ROWS
    assert not (tmp_path / "wide/sae").exists()
    assert (tmp_path / "sweep.csv").read_text() == table.to_csv()
    assert {"lr", "hook_name", "k", "d_sae", "l1_coefficient"} < set(table.columns)


def test_a_full_disk_ends_a_sweep_that_then_goes_on_to_the_same_end(
    alone, model, images, tmp_path, monkeypatch
) -> None:
    """It is full for all members, and none is to blame: not one is given up."""
    members = {
        name: replace(cfg, checkpoint_every_minutes=0.0)
        for name, cfg in _members().items()
        if name in ("patchsae", "deeper", "short")
    }
    runner = ViTSAESweepRunner(members, tmp_path, images, model)
    write_files, deeper = ViTSAETrainer.write_files, runner.saes["deeper"]

    def full(trainer: ViTSAETrainer, folder: Path) -> None:
        write_files(trainer, folder)
        if trainer.sae is deeper and trainer.n_training_steps == 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(ViTSAETrainer, "write_files", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            runner.run()
    line = error_line(caught.value)
    assert line is not None
    assert line.startswith(f"the disk is full (at {tmp_path}/deeper/checkpoints/.aside-")
    newest = {path.parents[1].name: path.name for path in sorted(tmp_path.glob("*/checkpoints/*"))}
    assert newest == {
        "patchsae": "step_000000030",
        "deeper": "step_000000029",
        "short": "step_000000021",
    }
    assert not list(tmp_path.rglob(".aside-*"))
    assert SAE.load_from_disk(tmp_path / "short/sae").cfg.d_sae == 96
    resumed = ViTSAESweepRunner.resume(tmp_path, images, model, checkpoint_every_minutes=60.0)
    assert set(resumed.run().table()["status"]) == {"finished"}
    for name in members:
        _same_files(alone / name, tmp_path / name)


def test_a_sweep_without_a_member_left_ends_with_an_error(model, images, tmp_path) -> None:
    members = {name: small_config(None, lr=lr) for name, lr in (("a", 1e30), ("b", 1e36))}
    with pytest.raises(DivergedError, match=r"all members .* diverged: a: the loss is .*; b: the"):
        ViTSAESweepRunner(members, tmp_path, images, model).run()


def test_the_scale_of_rows_is_estimated_as_alone_and_transcoders_share_the_pass(
    model, images, tmp_path
) -> None:
    hooks = {"hook_name": "blocks.0.hook_resid_mid", "hook_name_out": "blocks.0.hook_mlp_out"}
    transcoder = get_sae_training_class("transcoder")[1](
        d_in=32, d_out=32, d_sae=64, l1_coefficient=0.1, normalize_activations="none"
    )
    kinds = {
        "scaled": "expected_average_only_in",
        "white": "covariance_whitening",
        "scaled_too": "expected_average_only_in",
    }
    members = {
        name: small_config(
            None, sae=sae_config("standard", normalize_activations=kind), training_tokens=8 * ROWS
        )
        for name, kind in kinds.items()
    }
    _assert_as_alone(members, model, images, tmp_path / "scaled")
    out = hooks["hook_name_out"]  # first, so that the transcoder's columns have to be put in order
    members = {
        "sae": small_config(None, "topk", hook_name=out, training_tokens=8 * ROWS),
        "transcoder": small_config(None, sae=transcoder, training_tokens=8 * ROWS, **hooks),
    }
    _assert_as_alone(members, model, images, tmp_path / "transcoder")


def _assert_as_alone(members, model, images, folder: Path) -> None:
    runner = ViTSAESweepRunner(members, folder / "sweep", images, model)
    n_images_seen = []
    hook = model.bare_model.visual.conv1.register_forward_pre_hook(
        lambda module, inputs: n_images_seen.append(len(inputs[0]))
    )
    runner.run()
    in_sweep, n_images_seen[:] = sum(n_images_seen), []
    for name, cfg in members.items():
        settings = {**cfg.to_dict(), "output_path": str(folder / name)}
        ViTSAETrainingRunner(ViTSAERunnerConfig.from_dict(settings), images, model).run()
        _same_files(folder / name, folder / "sweep" / name)
    hook.remove()
    assert in_sweep < 0.8 * sum(n_images_seen)


def test_random_numbers_of_one_member_are_not_anothers(model, images, tmp_path) -> None:
    """An SAE that draws in its step (none of ours does) draws what it would alone."""

    def noisy(runner: ViTSAETrainingRunner) -> ViTSAETrainingRunner:
        step = runner.sae.training_forward_pass

        def drawn(step_input):
            noise = torch.randn_like(step_input.sae_in)
            return step(step_input=replace(step_input, sae_in=step_input.sae_in + noise))

        runner.sae.training_forward_pass = drawn
        return runner

    cfg = small_config(None, training_tokens=9 * ROWS)
    sweep = ViTSAESweepRunner({"a": cfg, "b": cfg}, tmp_path, images, model)
    for runner in sweep.runners.values():
        noisy(runner)
    sweep.run()
    alone = noisy(ViTSAETrainingRunner(cfg, images, model)).run()
    for sae in sweep.saes.values():
        assert torch.equal(sae.W_enc, alone.W_enc)


def test_members_that_cannot_share_a_stream_are_refused(
    model, images, tmp_path, monkeypatch
) -> None:
    one = small_config(None)
    for changes, message in (
        ({"seed": 5}, "seed is 3 and 5"),
        ({"train_batch_size_tokens": 64}, "train_batch_size_tokens is 128 and 64"),
        ({"token_kind": "all"}, "token_kind is 'patches' and 'all'"),
        ({"model_name": "shapes-clip"}, "model_name is 'ViT-B-16' and 'shapes-clip'"),
        ({"act_store_device": "meta"}, "act_store_device is 'cpu' and 'meta'"),
        (
            {"sae": sae_config("topk", normalize_activations="covariance_whitening")},
            "reads before training is 0 and 4",
        ),
    ):
        members = {"one": one, "other": replace(one, **changes)}
        with pytest.raises(ValueError, match="members 'one' and 'other' can't share") as refused:
            ViTSAESweepRunner(members, tmp_path, images, model)
        assert message in str(refused.value)
    logged = replace(one, logger=LoggingConfig(log_to_wandb=True))
    with pytest.raises(ValueError, match="one run a process; want False"):
        ViTSAESweepRunner({"one": logged}, tmp_path, images, model)
    with pytest.raises(ValueError, match=r"a member's name is '../up'"):
        ViTSAESweepRunner({"../up": one}, tmp_path, images, model)
    wrong = replace(one, hook_name="blocks.0.mlp.hook_post")
    with pytest.raises(ValueError, match=r"member 'other': sae.d_in is 32, .* want d_in="):
        ViTSAESweepRunner({"one": one, "other": wrong}, tmp_path, images, model)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"one of 2 processes .* a sweep trains in one"):
        ViTSAESweepRunner({"one": one}, tmp_path, images, model)
    assert not list(tmp_path.iterdir())


def test_a_sweep_has_its_folder_for_itself(model, images, tmp_path) -> None:
    members = {"one": small_config(None, training_tokens=2 * ROWS)}
    ViTSAESweepRunner(members, tmp_path, images, model).run()
    with pytest.raises(FileExistsError, match="already holds a sweep; go on with it by"):
        ViTSAESweepRunner(members, tmp_path, images, model)
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        ViTSAESweepRunner.resume(tmp_path / "one", images, model)
    before = (tmp_path / "one/sae/sae_weights.safetensors").read_bytes()
    longer = ViTSAESweepRunner.resume(tmp_path, images, model, training_tokens=3 * ROWS)
    assert longer.run().table().loc["one", "n_tokens"] == 3 * ROWS
    assert (tmp_path / "one/sae/sae_weights.safetensors").read_bytes() != before
    with pytest.raises(ValueError, match=r"can't resume with other settings \(lr: 0.002 in the"):
        ViTSAESweepRunner.resume(tmp_path, images, model, lr=1.0)


def test_a_sweep_killed_again_and_again_ends_with_the_same_weights(
    alone, model, images, tmp_path
) -> None:
    names = ("deeper", "short")
    members = {
        name: replace(cfg, checkpoint_every_minutes=0.0)
        for name, cfg in _members().items()
        if name in names
    }

    def live(**changes: float) -> None:
        if (tmp_path / "sweep.yaml").exists():
            ViTSAESweepRunner.resume(tmp_path, images, model, **changes).run()
        else:
            ViTSAESweepRunner(members, tmp_path, images, model).run()

    draw = random.Random(0)
    for n_steps in (2, 23):  # short ends between the two
        child = os.fork()
        if child == 0:
            try:
                warnings.simplefilter("ignore")
                live()
            finally:
                os._exit(0)
        _wait_for_step(tmp_path / "deeper", n_steps)
        time.sleep(draw.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    live(checkpoint_every_minutes=60.0)
    for name in names:
        _same_files(alone / name, tmp_path / name)


def _wait_for_step(run: Path, n_steps: int) -> None:
    """Until the run has a checkpoint of that many steps or more."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        steps = [int(path.name[5:]) for path in run.glob("checkpoints/step_*")]
        if max(steps, default=-1) >= n_steps:
            return
        time.sleep(0.01)
    raise AssertionError(f"{run} did not get as far as step {n_steps}")


def test_from_a_cache_members_read_several_hooks_and_go_on_exactly(model, images, tmp_path) -> None:
    hooks = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    write_cache(
        tmp_path / "cache", model, images, hook_names=hooks, token_kind="patches", progress=False
    )
    members = {
        hook[7]: small_config(
            None,
            "topk",
            hook_name=hook,
            training_tokens=12 * ROWS,
            model_name=None,
            dataset_path=f"cache:{tmp_path / 'cache'}",
        )
        for hook in hooks
    }
    runner = ViTSAESweepRunner(members, tmp_path / "sweep")
    _interrupt_in_step(runner.saes["1"], 7)
    with pytest.raises(TrainingInterruptedError, match="8 of 12"):
        runner.run()
    ViTSAESweepRunner.resume(tmp_path / "sweep").run()
    for name, cfg in members.items():
        settings = {**cfg.to_dict(), "output_path": str(tmp_path / name)}
        ViTSAETrainingRunner(ViTSAERunnerConfig.from_dict(settings)).run()
        _same_files(tmp_path / name, tmp_path / "sweep" / name)


def test_pooled_embeddings_are_made_once(model, images, tmp_path) -> None:
    members = {
        str(k): small_config(
            None,
            sae=sae_config("topk", d_in=24, k=k),
            hook_name="hook_image_embed",
            token_kind="all",
            train_batch_size_tokens=16,
            training_tokens=8 * 16,
            standardize_embeddings=True,
        )
        for k in (2, 4)
    }
    runner = ViTSAESweepRunner(members, tmp_path / "sweep", images, model)
    assert (tmp_path / "sweep" / "embeddings.npy").is_file()
    runner.run()
    for name, cfg in members.items():
        settings = {**cfg.to_dict(), "output_path": str(tmp_path / name)}
        ViTSAETrainingRunner(ViTSAERunnerConfig.from_dict(settings), images, model).run()
        _same_files(tmp_path / name, tmp_path / "sweep" / name)
    assert SAE.load_from_disk(tmp_path / "sweep/2/sae").cfg.metadata.input_statistics


def test_a_sweeps_file(tmp_path, model, images) -> None:
    (tmp_path / "base.yaml").write_text("lr: 1e-3\nsae: {architecture: topk, d_sae: 64, k: 4}\n")
    path = tmp_path / "sweep.yaml"
    path.write_text(
        """
config: base.yaml
settings: {hook_name: blocks.0.hook_resid_post, training_tokens: 256}
members:
  - {name: flat}
  - name: ours
    sae: {architecture: patchsae, expansion_factor: 2}
grid:
  lr: [1e-3, 5e-4]
"""
    )
    sweep = Sweep.load(path)
    names = [f"{name},lr={lr}" for name in ("flat", "ours") for lr in ("0.001", "0.0005")]
    assert list(sweep.members) == names
    assert sweep.settings_of("flat,lr=0.0005") == {
        "lr": 5e-4,
        "sae": {"architecture": "topk", "d_sae": 64, "k": 4},
        "hook_name": "blocks.0.hook_resid_post",
        "training_tokens": 256,
    }
    # another architecture's k is left behind, and the width it is given the other way
    assert sweep.settings_of("ours,lr=0.001")["sae"] == {
        "architecture": "patchsae",
        "expansion_factor": 2,
    }
    with pytest.raises(ValueError, match=r"lr is set for all members, but member 'flat,lr=0.001'"):
        sweep.change_all({"lr": 1.0})
    changes = {"train_batch_size_tokens": 64, "seed": 3, "verbose": False, "device": "cpu"}
    runner = ViTSAESweepRunner.from_settings(
        sweep.change_all(changes), tmp_path / "out", images, model
    )
    assert [sae.cfg.d_sae for sae in runner.saes.values()] == [64, 64, 64, 64]
    assert {"sae.architecture", "lr"} <= set(runner.run().varied())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("member: []", "there is no key of a sweep 'member'; near names: members"),
        ("lr: 1", "settings of all members go under 'settings'"),
        ("preset: relu", "no 'members' and no 'grid'"),
        ("{preset: relu, config: x.yaml, grid: {lr: [1]}}", "preset is 'relu' and config is"),
        ("members: [{lr: 1}]", "has no 'name'"),
        ("members: [{name: a}, {name: a}]", "two members are named 'a'"),
        ("members: [{name: a}, {name: A}]", "two members are named 'a' and 'A'; want names that"),
        ("members: [{name: a/b}]", "a member's name is 'a/b'"),
        ("members: [{name: a, lrr: 1}]", "member 'a': there is no setting 'lrr'; near names: lr"),
        ("members: [{name: a, lr: x}]", "member 'a': lr is 'x'"),
        ("grid: {sae.k: 8}", "grid: sae.k is 8; want a list of values"),
        ("grid: {lr: [1, 1]}", "grid: lr=1 is there twice"),
        ("{members: [{name: a, lr: 1}], grid: {lr: [1]}}", "lr is set by member 'a' and by the"),
        ("members: 3", "members is 3; want a list of changes"),
        ("settings: {foo.bar: 1}", "settings: foo.bar: want FIELD, sae.FIELD"),
    ],
)
def test_a_wrong_sweeps_file_says_what_is_wrong(text, message, tmp_path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        Sweep.load(path)


def test_a_planted_sweeps_folder_leads_nowhere_else(tmp_path) -> None:
    (tmp_path / "sweep.yaml").write_text('members: {"../outside": {}}')
    for opened in (SweepResults.load, ViTSAESweepRunner.resume):
        with pytest.raises(ValueError, match=r"a member's name is '../outside'"):
            opened(tmp_path)
