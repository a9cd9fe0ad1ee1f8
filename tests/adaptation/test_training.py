"""Few-shot training: what it learns from, at what rate, and what an interruption changes."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from tests.adaptation.conftest import tiny_clip
from tests.adaptation.test_adapted_models import config
from vit_sae_plugin.adaptation import METHODS, AdaptationConfig, adapt, load_adapted
from vit_sae_plugin.adaptation.augmentation import AugmentedImages
from vit_sae_plugin.adaptation.few_shot_training import FewShotTraining, lr_of_epoch
from vit_sae_plugin.datasets import few_shot, of_classes
from vit_sae_plugin.hooked_vit import HookedViT


def test_learning_rates_of_the_published_recipe():
    maple = AdaptationConfig("maple").complete(n_layers=12)
    rates = [lr_of_epoch(maple, epoch) for epoch in range(5)]
    assert rates == pytest.approx([1e-5, 0.0035, 0.003166, 0.002291, 0.001209], abs=1e-6)
    assert (maple.n_prompts, maple.depth, maple.batch_size_images) == (2, 9, 4)
    assert (maple.momentum, maple.weight_decay, maple.optimizer) == (0.9, 5e-4, "sgd")
    vpt = AdaptationConfig("vpt").complete(n_layers=12)
    assert (vpt.n_prompts, vpt.depth, vpt.lr, vpt.epochs) == (8, 12, 0.0025, 5)
    coop = AdaptationConfig("coop").complete(n_layers=12)
    assert (coop.n_prompts, coop.lr, coop.epochs, coop.batch_size_images) == (16, 0.002, 200, 32)


def test_depth_follows_the_towers_size():
    assert AdaptationConfig("maple").complete(n_layers=4).depth == 3
    assert AdaptationConfig("vpt").complete(n_layers=4).depth == 4


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss_and_touches_nothing_else(method, clip, images, tmp_path):
    folder = tmp_path / "adapted"
    adapted = adapt(clip, images, config(method, epochs=8), folder, progress=False)
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics.epoch.tolist() == list(range(1, 9))
    assert metrics.loss.iloc[-1] < metrics.loss.iloc[0]
    kept = {
        name.replace(".block.", ".").replace(".inner.", "."): tensor
        for name, tensor in adapted.bare_model.state_dict().items()
    }
    for name, tensor in clip.bare_model.state_dict().items():
        changed = not torch.equal(kept[name], tensor)
        layer_of_lora = name.startswith("visual.") and ".attn." in name and "bias" not in name
        assert changed == (method == "lora" and layer_of_lora), name


def test_images_are_drawn_before_the_classes_are_halved(clip, images, tmp_path):
    adapt(clip, images, config("coop", seed=4, epochs=1), tmp_path, progress=False)
    saved = json.loads((tmp_path / "adaptation.json").read_text())
    chosen = of_classes(few_shot(images, 3, seed=4), "base")
    assert saved["images"]["sha256"] == chosen.fingerprint()
    assert saved["images"]["n_images"] == 6
    assert saved["class_names"] == ["red", "blue"]


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("method", ["maple", "lora"])
def test_interrupted_training_ends_as_if_it_had_not_been(
    method, clip, images, tmp_path, monkeypatch
):
    settings = config(method, crop_scale=(0.3, 1.0), flip=True)
    adapt(clip, images, settings, tmp_path / "whole", progress=False)
    steps = 0
    own = FewShotTraining._step

    def killed(self, *args):
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return own(self, *args)

    monkeypatch.setattr(FewShotTraining, "_step", killed)
    for _ in range(2):  # killed in the second epoch, then in the third
        with pytest.raises(KeyboardInterrupt):
            adapt(tiny_clip(), images, settings, tmp_path / "parts", progress=False)
        steps = 2
    monkeypatch.setattr(FewShotTraining, "_step", own)
    assert not (tmp_path / "parts" / "adaptation.json").exists()
    adapt(tiny_clip(), images, settings, tmp_path / "parts", progress=False)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_a_snapshot_of_other_settings_is_not_gone_on_with(clip, images, tmp_path, monkeypatch):
    def killed(self, *args):
        if len(self.metrics):
            raise KeyboardInterrupt
        return own(self, *args)

    own = FewShotTraining._step
    monkeypatch.setattr(FewShotTraining, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        adapt(clip, images, config("coop"), tmp_path, progress=False)
    monkeypatch.setattr(FewShotTraining, "_step", own)
    with pytest.raises(ValueError, match="other settings or images"):
        adapt(clip, images, config("coop", lr=0.01), tmp_path, progress=False)
    adapt(clip, images, config("coop", lr=0.01), tmp_path, progress=False, overwrite=True)


def test_a_finished_folder_is_opened_and_another_one_refused(clip, images, tmp_path, monkeypatch):
    made = adapt(clip, images, config("vpt"), tmp_path, progress=False)
    monkeypatch.delattr(FewShotTraining, "run")
    opened = adapt(clip, images, config("vpt"), tmp_path, progress=False)
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(opened(pixels), made(pixels))
    for other, message in (
        (config("vpt", n_prompts=3), r"config.n_prompts=2, and 3 is wanted"),
        (config("vpt", seed=2), r"config.seed=1, and 2"),
    ):
        with pytest.raises(ValueError, match=message):
            adapt(clip, images, other, tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"base\.weights_sha256"):
        adapt(tiny_clip(seed=1), images, config("vpt"), tmp_path, progress=False)


@pytest.mark.parametrize("method", METHODS)
def test_the_class_weights_are_those_that_were_trained(method, clip, images, tmp_path):
    adapted = adapt(clip, images, config(method), tmp_path, progress=False)
    again = load_adapted(tmp_path, base=clip)
    names = ["red", "blue"]
    weights = adapted.zero_shot_classifier(names, ["an picture {}"])
    assert torch.equal(weights, again.zero_shot_classifier(names, ["red {}"]))
    plain = clip.zero_shot_classifier(names, ["a photo of a {}."])
    assert torch.allclose(weights, plain, rtol=1e-4, atol=1e-5) == (method in ("vpt", "lora"))
    if method == "linear_probe":
        swapped = adapted.zero_shot_classifier(["blue", "red"], ())
        assert torch.equal(swapped, weights.flip(1))
        with pytest.raises(ValueError, match="learnt 2 classes, and 'green' is none"):
            adapted.zero_shot_classifier(["red", "green"], ())
    else:
        novel = adapted.zero_shot_classifier(["green", "black"], ())
        torch.testing.assert_close(novel.norm(dim=0), torch.ones(2))


def test_augmentation_depends_on_epoch_and_image_alone(images):
    settings = {"crop_scale": (0.1, 0.5), "flip": True, "seed": 3}
    one = AugmentedImages(images, (32, 32), epoch=0, **settings)
    same = AugmentedImages(images, (32, 32), epoch=0, **settings)
    later = AugmentedImages(images, (32, 32), epoch=1, **settings)
    assert one.record(5).load().size == (32, 32)
    assert one.record(5).load().tobytes() == same.record(5).load().tobytes()
    assert one.record(5).load().tobytes() != later.record(5).load().tobytes()
    whole = AugmentedImages(images, (32, 32), epoch=0, crop_scale=(1.0, 1.0), flip=False, seed=3)
    assert whole.record(5).load().tobytes() == images.record(5).load().tobytes()


def test_a_model_by_its_name(images, tmp_path):
    settings = config("vpt", epochs=1)
    made = adapt("shapes-clip", images, settings, tmp_path / "vpt", progress=False)
    loaded = HookedViT.from_pretrained(str(tmp_path / "vpt"))
    assert loaded.model_name == made.model_name == f"adapted:{tmp_path / 'vpt'}"
    assert loaded.from_pretrained_kwargs == made.from_pretrained_kwargs
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(pixels), made(pixels))
    recorded = HookedViT.from_recorded(loaded.model_name, loaded.from_pretrained_kwargs)
    assert torch.equal(recorded(pixels), made(pixels))
