"""What commands refuse before any work is done, and that nothing is spoilt by it."""

import json
import math
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.command import vit_sae
from vit_sae_plugin import PatchSAE, PatchSAEConfig
from vit_sae_plugin.fingerprints import write_manifest

WEIGHTS = "sae_weights.safetensors"


@pytest.fixture
def sae(tmp_path):
    """An SAE on the packaged model, with the hashes that a training run leaves."""
    torch.manual_seed(0)
    sae = PatchSAE(PatchSAEConfig(d_in=128, d_sae=6))
    for name, value in {
        "model_name": "shapes-clip",
        "model_class_name": "HookedViT",
        "hook_name": "blocks.2.hook_resid_post",
    }.items():
        sae.cfg.metadata[name] = value
    sae.save_model(tmp_path / "sae")
    write_manifest(tmp_path / "sae")
    return tmp_path / "sae"


def commands(sae, out):
    images = ("--images", "shapes:test?n_images=2", "--output-path", out)
    return [("eval", sae, *images), ("analyze", sae, *images), ("export", sae, out)]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(capsys, *argv):
    """The one line a command is refused with."""
    assert vit_sae(*argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"vit-sae {argv[0]}: error: ")
    return lines[0]


def test_weights_that_are_not_finite(sae, tmp_path, capsys):
    weights = load_file(sae / WEIGHTS)
    weights["b_enc"][3] = math.nan
    save_file(weights, sae / WEIGHTS)
    for command in commands(sae, tmp_path / "out"):
        assert f"the contents of {WEIGHTS} have changed" in refusal(capsys, *command)
    write_manifest(sae)
    for command in commands(sae, tmp_path / "out"):
        assert "b_enc of the SAE in" in (told := refusal(capsys, *command))
        assert "holds 1 values that are NaN or infinite (of 6)" in told
    assert not (tmp_path / "out").exists()


def test_a_model_that_runs_code(sae, tmp_path, capsys):
    cfg = json.loads((sae / "cfg.json").read_text())
    cfg["metadata"] |= {"model_from_pretrained_kwargs": {"trust_remote_code": True}}
    (sae / "cfg.json").write_text(json.dumps(cfg))
    write_manifest(sae)
    for command in commands(sae, tmp_path / "out")[:2]:
        told = refusal(capsys, *command)
        assert "trust_remote_code=True, which a file may not set" in told
        assert "load the model by hand with HookedViT.from_pretrained" in told
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # SAELens would advise another class's loader
        assert vit_sae(*commands(sae, tmp_path / "out")[2]) == 0  # an export needs no model


def test_an_export_onto_itself_or_anything_else(sae, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("1")
    before = files(tmp_path)
    for taken in (sae, tmp_path, tmp_path / "thesis", tmp_path / "thesis" / "chapter.txt"):
        assert "an export replaces nothing" in refusal(capsys, "export", sae, taken)
    assert files(tmp_path) == before


def test_places_that_cannot_be_written_to(sae, tmp_path, capsys):
    (tmp_path / "file").write_text("1")
    before = files(tmp_path)
    for command in commands(sae, tmp_path / "file" / "out"):
        assert "can't write" in refusal(capsys, *command)
    eval_command, analyze_command, _ = commands(sae, tmp_path / "out")
    latents = ("--save-latents", tmp_path / "file" / "latents")
    assert "with --save-latents" in refusal(capsys, *eval_command, *latents)
    assert "a file" in refusal(capsys, *analyze_command, "--report", tmp_path / "file" / "r")
    train = ("train", "--images", "shapes", "--output-path", tmp_path / "file" / "run")
    assert "with --output-path" in refusal(capsys, *train)
    assert "with --output-path" in refusal(capsys, "demo", "--output-path", tmp_path / "file")
    assert files(tmp_path) == before


def test_a_disk_that_is_full_at_the_end(sae, tmp_path, monkeypatch, capsys):
    def full(self, path):
        path.mkdir(exist_ok=True)
        (path / "cfg.json").write_text("{")
        raise OSError(28, "No space left on device", str(path))

    from sae_lens import StandardSAE

    monkeypatch.setattr(StandardSAE, "save_model", full)
    assert "the disk is full" in refusal(capsys, "export", sae, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sae"]
