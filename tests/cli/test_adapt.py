"""``vit-sae adapt``: a model in a folder, which the other commands take by its name."""

import json

import pandas as pd
import pytest
import torch

from tests.cli.command import vit_sae
from vit_sae_plugin.activations import ActivationSource
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.saved_sae import load_saved_sae

IMAGES = "shapes:train?style=outline&n_objects=1&n_images=400&seed=3"
FEW = ("--preset", "shapes", "--shots", 1, "--epochs", 2, "--device", "cpu")


def adapt(folder, *args):
    return vit_sae(
        "adapt", "--images", IMAGES, "--model", "shapes-clip", "--output-path", folder, *FEW, *args
    )


def test_an_sae_trained_on_an_adapted_model_says_what_it_reads(tmp_path, capsys):
    folder = tmp_path / "vpt"
    few = "shapes:test?style=outline&n_images=30"
    assert adapt(folder, "--method", "vpt", "--eval-images", few) == 0
    said = capsys.readouterr().out
    assert f"vit-sae train --model {folder}" in said
    table = pd.read_csv(folder / "accuracy.csv", index_col="model")
    assert list(table.index) == ["before", "after"]
    assert list(table.columns) == ["base", "novel", "harmonic_mean"]
    assert f"{100 * table.base['after']:.1f}" in said

    run = tmp_path / "run"
    settings = "train_batch_size_tokens=256 store_batch_size_images=8".split()
    assert (
        vit_sae(
            *"train --images shapes:train?n_images=64 --token-kind patches --d-sae 256".split(),
            *("--training-tokens", 1024, "--device", "cpu", "--output-path", run),
            *("--model", folder),
            *(flag for setting in settings for flag in ("--set", setting)),
        )
        == 0
    )
    sae = load_saved_sae(run / "sae")
    source = ActivationSource.from_metadata(sae.cfg.metadata)
    model = source.load_model("cpu")
    assert model.model_name == f"adapted:{folder}"
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(pixels), HookedViT.from_pretrained(str(folder))(pixels))
    stream = model(pixels, stop_at_layer=source.stop_at_layer)
    assert source.layout(model.cfg, stream).roles == ("patch",) * 64
    assert vit_sae("eval", run / "sae", "--images", few, "--device", "cpu") == 0

    # adapted anew, it is another model
    assert adapt(folder, "--method", "vpt", "--seed", 2, "--overwrite") == 0
    capsys.readouterr()
    assert vit_sae("eval", run / "sae", "--images", few, "--device", "cpu") == 2
    assert "it was adapted anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--method", "maples"), "no method 'maples'; near names: maple"),
        (("--shots", 20), "n_shots is 20, but class"),
        (("--set", "depth=9"), "depth is 9, but the model has"),
        (("--set", "prompts=9"), "no setting 'prompts'; near names: n_prompts"),
        (("--checkpoint", "model.pth.tar-5"), "leave out --images, --shots, --preset, --epochs"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, args, message):
    assert adapt(tmp_path / "x", *args) == 2
    said = capsys.readouterr().err
    assert said.startswith("vit-sae adapt: error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_that_is_none(tmp_path, capsys):
    path = tmp_path / "model.pth.tar-5"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    args = ("--checkpoint", path, "--model", "shapes-clip", "--output-path", tmp_path / "x")
    assert vit_sae("adapt", *args, "--device", "cpu") == 2
    assert "has no prompt_learner.ctx or ctx (it has weight)" in capsys.readouterr().err


def test_an_official_checkpoint(tmp_path, capsys):
    path = tmp_path / "model.pth.tar-50"
    torch.save({"state_dict": {"ctx": 0.02 * torch.randn(4, 128)}}, path)
    args = ("--checkpoint", path, "--model", "shapes-clip", "--output-path", tmp_path / "coop")
    assert vit_sae("adapt", *args, "--device", "cpu") == 0
    assert "coop, 4 prompt tokens; its frozen CLIP: the file holds no" in capsys.readouterr().err
    saved = json.loads((tmp_path / "coop" / "adaptation.json").read_text())
    assert (saved["config"]["method"], saved["config"]["depth"]) == ("coop", None)
    weights = HookedViT.from_pretrained(str(tmp_path / "coop")).zero_shot_classifier(["star"], ())
    assert weights.shape == (128, 1)
