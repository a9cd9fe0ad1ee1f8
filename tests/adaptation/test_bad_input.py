"""Bad input: one clear error each, before anything is computed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.adaptation.conftest import tiny_clip
from tests.adaptation.test_adapted_models import config
from vit_sae_plugin.adaptation import (
    AdaptationConfig,
    AdaptationFileError,
    adapt,
    load_adapted,
)
from vit_sae_plugin.adaptation.few_shot_training import DivergedTrainingError, FewShotTraining
from vit_sae_plugin.datasets import ArrayImages
from vit_sae_plugin.fingerprints import DamagedFileError
from vit_sae_plugin.hooked_vit import HookedViT, ModelNameError, UnsafeSettingError, WeightsError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "maples"}, "no method 'maples'; near names: maple"),
        ({"method": "prefix"}, "no method 'prefix'; near names: maple, coop, vpt, lora, linear"),
        ({"preset": "shape"}, "no preset 'shape'; near names: shapes"),
        ({"shots": 0}, "shots is 0; want 1 or more"),
        ({"shots": "many"}, "shots is 'many'"),
        ({"half": "bases"}, "half is 'bases'"),
        ({"method": "coop", "depth": 3}, "depth is 3, but method 'coop' has no such setting"),
        ({"method": "vpt", "text_init": "a"}, "text_init is 'a', but method 'vpt'"),
        ({"method": "lora", "round_prompts_to_half": True}, "round_prompts_to_half is True, but"),
        ({"text_init": "a photo of {}"}, "want the words in front of the class name only"),
        ({"lr": -1.0}, "lr is -1.0; want a number above 0"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; want 0 or more"),
        ({"crop_scale": (0.5, 0.1)}, r"crop_scale is \(0.5, 0.1\)"),
        ({"epochs": 2.5}, "epochs is 2.5"),
        ({"prompts": 3}, "no setting 'prompts'; near names: n_prompts"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptationConfig.from_dict(settings)


def without_training(monkeypatch):
    monkeypatch.delattr(FewShotTraining, "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 7}, "n_shots is 7, but class 'red' of arrays has 6 images"),
        ({"depth": 4}, "depth is 4, but the model has 2 blocks; want 1 to 2"),
    ],
)
def test_settings_that_do_not_fit(settings, message, clip, images, tmp_path, monkeypatch):
    without_training(monkeypatch)
    with pytest.raises(ValueError, match=message):
        adapt(clip, images, config("maple", **settings), tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 2], ["red", "blue"], "labels up to 2, but 2 class names; want 3"),
        ([0, 1, 2], None, "no class names"),
    ],
)
def test_a_class_list_of_the_wrong_length(labels, names, message, clip, tmp_path, monkeypatch):
    without_training(monkeypatch)
    pictures = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    source = ArrayImages(pictures, labels=labels)
    source.class_names = names
    with pytest.raises(ValueError, match=message):
        adapt(clip, source, config("coop", shots=1), tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()


def test_a_model_without_text_and_one_adapted_already(clip, images, tmp_path):
    silent = HookedViT.from_module(clip.bare_model, preprocess=clip.preprocess)
    with pytest.raises(ValueError, match="no tokenizer, so it can't be adapted"):
        adapt(silent, images, config("vpt"), tmp_path / "x", progress=False)
    adapted = adapt(clip, images, config("vpt"), tmp_path / "vpt", progress=False)
    with pytest.raises(ValueError, match="is an adapted model"):
        adapt(adapted, images, config("coop"), tmp_path / "x", progress=False)


def test_more_prompt_tokens_than_the_text_has_room_for(clip, images, tmp_path):
    with pytest.raises(ValueError, match=r"gives .* the same tokens: its texts are too short"):
        adapt(
            clip_with_short_texts(clip),
            images,
            config("coop", n_prompts=14),
            tmp_path / "x",
            progress=False,
        )


def clip_with_short_texts(clip):
    own = clip.tokenizer
    clip.tokenizer = lambda texts: own(texts, 40)[:, :10]
    return clip


def test_a_loss_that_is_no_number(clip, images, tmp_path):
    with pytest.raises(DivergedTrainingError, match=r"the loss is nan in epoch \d at lr=.*smaller"):
        adapt(clip, images, config("vpt", lr=1e30, epochs=6), tmp_path, progress=False)


@pytest.fixture
def folder(clip, images, tmp_path):
    adapt(clip, images, config("vpt", epochs=1), tmp_path / "vpt", progress=False)
    return tmp_path / "vpt"


def change_config(folder, **changes):
    path = folder / "adaptation.json"
    values = json.loads(path.read_text())
    values["config"] |= changes
    path.write_text(json.dumps(values))


def test_damaged_and_foreign_folders(clip, folder):
    with pytest.raises(AdaptationFileError, match=r"was adapted from .* with the weights"):
        load_adapted(folder, base=tiny_clip(seed=1))
    change_config(folder, n_prompts=3)
    with pytest.raises(AdaptationFileError, match=r"prompts.0 is \(2, 32\) .* and \(3, 32\)"):
        load_adapted(folder, base=clip)
    change_config(folder, n_prompts=2, depth=2)
    with pytest.raises(AdaptationFileError, match=r"prompts.2 is \(2, 32\) .* and nothing"):
        load_adapted(folder, base=clip)
    change_config(folder, depth=3, method="vtp")
    with pytest.raises(AdaptationFileError, match="no method 'vtp'; near names: vpt"):
        load_adapted(folder, base=clip)
    tensors = load_file(folder / "adapter.safetensors")
    tensors["prompts.0"][0] += 1
    save_file(tensors, folder / "adapter.safetensors")
    with pytest.raises(DamagedFileError, match="have changed since they were written"):
        load_adapted(folder, base=clip)
    (folder / "adaptation.json").write_text("{")
    with pytest.raises(AdaptationFileError, match="can't be read"):
        load_adapted(folder, base=clip)
    (folder / "adaptation.json").unlink()
    with pytest.raises(AdaptationFileError, match="interrupted: give the same 'vit-sae adapt'"):
        load_adapted(folder)


def test_what_a_file_may_ask_for_of_an_adapted_model(images, tmp_path):
    adapt("shapes-clip", images, config("vpt", epochs=1), tmp_path / "vpt", progress=False)
    name = f"adapted:{tmp_path / 'vpt'}"
    with pytest.raises(WeightsError, match="comes with its weights"):
        HookedViT.from_pretrained(name, pretrained="openai")
    with pytest.raises(AdaptationFileError, match="but 00000000 is asked for: it was adapted anew"):
        HookedViT.from_recorded(name, {"adapter_sha256": "0" * 64})
    with pytest.raises(UnsafeSettingError, match="base="):
        HookedViT.from_recorded(name, {"base": "x"})
    path = tmp_path / "vpt" / "adaptation.json"
    values = json.loads(path.read_text())
    values["base"] |= {
        "model_name": "hf:org/name",
        "from_pretrained_kwargs": {"trust_remote_code": True},
    }
    path.write_text(json.dumps(values))
    with pytest.raises(UnsafeSettingError, match="trust_remote_code=True, which a file"):
        HookedViT.from_pretrained(name)
    with pytest.raises(ModelNameError, match="a folder that vit-sae adapt made"):
        HookedViT.from_pretrained(str(tmp_path))
