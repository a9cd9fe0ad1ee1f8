"""What is told of errors: one line, exit code 2; a traceback, and 1, where the fault is ours."""

import errno
import pickle

import httpx
import pytest
import torch
from safetensors import SafetensorError

import vit_sae_cli
from tests.cli.command import vit_sae
from vit_sae_plugin.cli import error_lines, export
from vit_sae_plugin.datasets import NoReadableImagesError, WorkerDiedError
from vit_sae_plugin.fingerprints import DamagedFileError
from vit_sae_plugin.training import DamagedCheckpointError, DivergedError, RankLostError


def _ending_in(monkeypatch, capsys, error, *flags):
    """Exit code and error output of a command in which an error comes up."""

    def broken(args):
        raise error

    monkeypatch.setattr(export, "run", broken)
    code = vit_sae(*flags, "export", "a", "b")
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("k is 0;\n  want 1"), "k is 0; want 1"),
        (OSError(errno.ENOSPC, "No space left on device", "x.bin"), "the disk is full (at x.bin)"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "the disk is full"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
            "the disk is full",
        ),
        (RankLostError("rank 0 stopped: OSError: No space left on device; the last"), "; the last"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "choose a place that you may"),
        (OSError(errno.EROFS, "Read-only file system", "out"), "choose a place that you may"),
        (MemoryError(), "memory ran out (MemoryError): use smaller batches"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory ran out (CUDA out of memory)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory ran out"),
        (httpx.ConnectError("no route"), "a download failed (ConnectError: no route); check the"),
        (ConnectionError("Couldn't reach 'x' on the Hub"), "check the network and the name"),
        (WorkerDiedError("A worker process died: use fewer"), "A worker process died"),
        (SafetensorError("header too small"), "(header too small): it is damaged"),
        (pickle.UnpicklingError("Weights only load failed"), "save the weights as safetensors"),
        (DamagedFileError("a.bin"), "a.bin"),
        (DamagedCheckpointError("all 2 checkpoints"), "all 2 checkpoints"),
        (DivergedError("the loss is nan"), "the loss is nan"),
        (NoReadableImagesError("none of 3"), "none of 3"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_user_can_mend_is_one_line(monkeypatch, capsys, error, told):
    code, said = _ending_in(monkeypatch, capsys, error)
    assert code == 2
    assert said.startswith("vit-sae export: error: ")
    assert told in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shape"), TypeError(), IndexError()])
def test_a_fault_of_ours_says_so_under_its_traceback(monkeypatch, capsys, error):
    code, said = _ending_in(monkeypatch, capsys, error)
    assert code == 1
    lines = said.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("vit-sae export: error: this is a fault of vit-sae, not of your")
    assert vit_sae_cli.ISSUES in lines[-1]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_the_traceback_wherever_it_stands(place, tmp_path, monkeypatch, capsys):
    argv = ["export", str(tmp_path / "a"), str(tmp_path / "b")]
    argv.insert(place, "--debug")
    assert vit_sae(*argv) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("vit-sae export: error: there is no SAE in")
    argv.remove("--debug")
    assert vit_sae(*argv) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_long_value_does_not_fill_the_screen():
    line = error_lines.error_line(ValueError(f"{'x' * 9000} is a name; want a shorter one"))
    assert line is not None
    assert len(line) < 1000
    assert line.endswith("want a shorter one")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["exprot"], "invalid choice: 'exprot'"),
        (["train", "--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
        (["analyze"], "the following arguments are required: SAE_FOLDER"),
    ],
)
def test_wrong_arguments_are_one_line_that_points_to_the_help(argv, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        vit_sae(*argv)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert told in said
    assert said.endswith("--help' explains\n")


def test_version(capsys):
    from importlib.metadata import version

    import vit_sae_plugin

    with pytest.raises(SystemExit) as stopped:
        vit_sae("--version")
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"vit-sae {version('vit-sae-plugin')}\n"
    assert vit_sae_plugin.__version__ == version("vit-sae-plugin")


def test_warnings_are_lines_of_the_command(monkeypatch, capfd):
    import warnings

    def warning(args):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            # pytest's recorder would take it
            message = warnings.WarningMessage("two\nlines", UserWarning, "x.py", 3)
            print(warnings.formatwarning(message.message, UserWarning, "x.py", 3), end="")

    monkeypatch.setattr(export, "run", warning)
    former = warnings.formatwarning
    assert vit_sae("export", "a", "b") == 0
    assert capfd.readouterr().out == "vit-sae export: warning: two lines\n"
    assert warnings.formatwarning is former


def test_a_reader_that_has_gone_is_no_error(monkeypatch, capsys):
    import sys

    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards
    code, said = _ending_in(monkeypatch, capsys, BrokenPipeError())
    assert (code, said) == (1, "")
