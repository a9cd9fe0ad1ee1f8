"""One of the processes is killed, fails, or is told to stop: all end, say why, and lose nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.ranks.processes import Processes
from tests.training.small_run import sae_config, small_config, small_images, small_model
from vit_sae_plugin.training import ViTSAETrainingRunner
from vit_sae_plugin.training.checkpoints import find_damage

N_STEPS = 30
FAILED = 1


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def images():
    return small_images()


@pytest.fixture(scope="module")
def undisturbed(model, images, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights of a run of two processes to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    Processes(2, lambda: _runner(folder / "run", model, images).run(), folder / "logs").end()
    return _weights(folder / "run")


def _runner(folder: Path, model, images, **changes: Any) -> ViTSAETrainingRunner:
    settings = {"sae": sae_config(), "training_tokens": N_STEPS * 128, **changes}
    return ViTSAETrainingRunner(small_config(folder, **settings), images, model)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae" / "sae_weights.safetensors")


def _saved_steps(folder: Path) -> list[int]:
    checkpoints = sorted((folder / "checkpoints").glob("step_*"))
    assert all(find_damage(checkpoint) is None for checkpoint in checkpoints)
    return [int(checkpoint.name.removeprefix("step_")) for checkpoint in checkpoints]


def _at_call(number: int, act: Callable[[], Any], function: Callable) -> Callable:
    """The function, which does something else first at its ``number``-th call."""
    n_calls = []

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        n_calls.append(None)
        if len(n_calls) == number:
            act()
        return function(*args, **kwargs)

    return disturbed


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
    raise ValueError("the latents are out of order")


def _send(*signals: int) -> Callable[[], None]:
    return lambda: [os.kill(os.getpid(), number) for number in signals] and None


def _train_disturbed(
    folder: Path, model, images, disturbances: dict[int, tuple[str, int, Any]], **changes: Any
) -> Processes:
    """Two processes; some are disturbed in a call of the model, or of the SAE's training step."""

    def train() -> None:
        runner = _runner(folder / "run", model, images, **changes)
        if (disturbance := disturbances.get(int(os.environ["RANK"]))) is not None:
            where, number, act = disturbance
            if where == "model":
                model.forward = _at_call(number, act, model.forward)
            else:
                forward = runner.sae.training_forward_pass
                runner.sae.training_forward_pass = _at_call(number, act, forward)
        runner.run()

    return Processes(2, train, folder / "logs")


def _resume(folder: Path, model, images) -> dict[str, torch.Tensor]:
    def resume() -> None:
        ViTSAETrainingRunner.resume(folder / "run", images, model).run()

    Processes(2, resume, folder / "logs of resumed").end()
    return _weights(folder / "run")


def _same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_when_one_is_killed_in_a_step_the_last_checkpoint_is_gone_on_from(
    model, images, undisturbed, tmp_path
) -> None:
    # a checkpoint after each step
    killed = {1: ("step", 20, _die)}
    processes = _train_disturbed(tmp_path, model, images, killed, checkpoint_every_minutes=0)
    log, _ = processes.end(FAILED, -signal.SIGKILL)
    line = log.strip().splitlines()[-1]
    assert line.startswith(f"RankLostError: rank 1 (process {processes.ids[1]} on ")
    assert " is gone: it was killed, or crashed; the last checkpoint is " in line
    assert "/step_000000019. Go on with: torchrun --nproc-per-node N --no-python vit-sae" in line
    assert _saved_steps(tmp_path / "run")[-1] == 19
    assert _same_bits(_resume(tmp_path, model, images), undisturbed)


def test_when_one_is_killed_between_steps_not_even_a_step_is_lost(
    model, images, undisturbed, tmp_path
) -> None:
    # a buffer of 6 batches takes 7 or 8 image batches, of which each process runs half
    killed = {1: ("model", 10, _die)}
    log, _ = _train_disturbed(tmp_path, model, images, killed).end(FAILED, -signal.SIGKILL)
    (saved,) = _saved_steps(tmp_path / "run")
    assert saved in (12, 18)
    assert f"the last checkpoint is {tmp_path}/run/checkpoints/step_{saved:09d}." in log
    assert _same_bits(_resume(tmp_path, model, images), undisturbed)


def test_when_the_first_is_killed_the_others_say_so(model, images, undisturbed, tmp_path) -> None:
    killed = {0: ("step", 5, _die)}
    processes = _train_disturbed(tmp_path, model, images, killed)
    _, log = processes.end(-signal.SIGKILL, FAILED)
    assert f"RankLostError: rank 0 (process {processes.ids[0]} on" in log
    assert "is gone: it was killed, or crashed; nothing was saved. Go on with" in log
    # its lock's file is still there, and each process looks whether it holds
    assert (tmp_path / "run" / "run.lock").exists()
    assert _same_bits(_resume(tmp_path, model, images), undisturbed)


def test_an_error_in_one_reaches_all(model, images, tmp_path) -> None:
    failing = {1: ("step", 5, _fail)}
    log, own_log = _train_disturbed(tmp_path, model, images, failing).end(FAILED, FAILED)
    assert "RankLostError: rank 1 stopped: ValueError: the latents are out of order; " in log
    assert own_log.strip().splitlines()[-1] == "ValueError: the latents are out of order"


@pytest.mark.parametrize(
    "told",
    [
        {0: ("step", 9, _send(signal.SIGTERM)), 1: ("step", 11, _send(signal.SIGTERM))},
        {1: ("model", 6, _send(signal.SIGTERM))},  # only one, and within a buffer
        # torchrun passes on to them what Ctrl-C in a terminal has sent them already
        {rank: ("step", 9, _send(signal.SIGINT, signal.SIGINT)) for rank in (0, 1)},
    ],
    ids=["SIGTERM in a step", "SIGTERM in the store", "Ctrl-C"],
)
def test_told_to_stop_all_stop_at_one_step_and_one_saves(
    model, images, undisturbed, tmp_path, told
) -> None:
    logs = _train_disturbed(tmp_path, model, images, told).end(FAILED, FAILED)
    (saved,) = _saved_steps(tmp_path / "run")
    assert saved == (9 if told.get(0) else 6)
    for log in logs:
        last = log.strip().splitlines()[-1]
        assert last.startswith(f"TrainingInterruptedError: stopped after {saved} of {N_STEPS}")
    assert _same_bits(_resume(tmp_path, model, images), undisturbed)


def test_what_several_processes_cannot_train_is_refused(images, model, tmp_path) -> None:
    class OtherConfig(type(sae_config("topk"))):
        @classmethod
        def architecture(cls) -> str:
            return "topk_of_mine"

    def train() -> None:
        sae = OtherConfig.__new__(OtherConfig)
        sae.__dict__.update(sae_config("topk").__dict__)
        _runner(tmp_path / "run", model, images, sae=sae)

    for log in Processes(2, train, tmp_path / "logs").end(FAILED, FAILED):
        last = log.strip().splitlines()[-1]
        assert last.startswith("ValueError: several processes can't train 'topk_of_mine': it isn't")
        assert last.endswith("or one process")
    assert not (tmp_path / "run").exists()


def test_an_environment_that_names_no_rank_is_refused(images, model, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="WORLD_SIZE is 4, but RANK, MASTER_ADDR, MASTER_PORT"):
        ViTSAETrainingRunner(small_config(None), images, model)
