"""Training from a cache: no tower, the same metadata, exact resume; what doesn't fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from tests.training.small_run import sae_config, small_config
from vit_sae_plugin.activations import ActivationSource
from vit_sae_plugin.activations.cache import CacheMismatchError, CacheStore, write_cache
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.saes import SkipTranscoderTrainingSAEConfig
from vit_sae_plugin.training import ViTSAERunnerConfig, ViTSAETrainingRunner, read_metrics

HOOKS = ["blocks.1.hook_resid_post", "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"]
IMAGES = "shapes:train?n_images=40"


@pytest.fixture(scope="module")
def model() -> HookedViT:
    return HookedViT.from_pretrained("shapes-clip")


@pytest.fixture(scope="module")
def cache(model, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("cache") / "c"
    write_cache(folder, model, IMAGES, hook_names=HOOKS, batch_size_images=8, progress=False)
    return f"cache:{folder}"


@pytest.fixture
def no_tower(monkeypatch):
    def refuse(*args: Any, **kwargs: Any):
        raise AssertionError("the tower was loaded")

    monkeypatch.setattr(HookedViT, "from_recorded", refuse)


def _config(cache: str, model: HookedViT, folder: Path | None = None, **changes: Any):
    settings: dict[str, Any] = {
        "sae": sae_config("topk_ghost", d_in=model.cfg.d_model),
        "device": "cpu",
        "dataset_path": cache,
        "model_name": "auto",
        "hook_name": HOOKS[0],
        "token_kind": "all",
        "training_tokens": 60 * 128,
    }
    return small_config(folder, **{**settings, **changes})


def test_an_sae_is_trained_without_the_tower_and_knows_it_as_if_from_images(
    cache, model, tmp_path, no_tower
) -> None:
    runner = ViTSAETrainingRunner(_config(cache, model, tmp_path / "c"))
    runner.run()
    assert runner.model is None
    lines = read_metrics(tmp_path / "c" / "metrics.jsonl")
    assert lines["explained_variance"].iloc[-1] > 0.5 > lines["explained_variance"].iloc[0]
    from_cache = SAE.load_from_disk(tmp_path / "c" / "sae").cfg.metadata.to_dict()

    settings = {"dataset_path": IMAGES, "model_name": "shapes-clip", "training_tokens": 128}
    ViTSAETrainingRunner(
        _config(cache, model, tmp_path / "i", **settings), override_model=model
    ).run()
    from_images = SAE.load_from_disk(tmp_path / "i" / "sae").cfg.metadata.to_dict()
    expected = ActivationSource.from_metadata(from_images)
    assert ActivationSource.from_metadata(from_cache) == expected
    assert expected.model_sha256 is not None
    # what differs is the run's, not the rows'
    differing = {
        k for k in {**from_cache, **from_images} if from_cache.get(k) != from_images.get(k)
    }
    assert differing <= {"dataset_path", "l0", "num_dead_features"}


def test_settings_that_a_cache_decides_need_not_be_given(cache, model, tmp_path) -> None:
    given = {"sae": sae_config("patchsae", d_in=model.cfg.d_model), "dataset_path": cache}
    cfg = ViTSAERunnerConfig(**given, hook_name=HOOKS[1])
    assert cfg.model_name == "shapes-clip"
    assert cfg.model_from_pretrained_kwargs == model.from_pretrained_kwargs
    assert ViTSAERunnerConfig.from_dict(cfg.to_dict()) == cfg
    write_cache(
        tmp_path / "one", model, IMAGES, hook_names=HOOKS[2:], batch_size_images=8, progress=False
    )
    given["dataset_path"] = f"cache:{tmp_path / 'one'}"
    assert ViTSAERunnerConfig(**given).hook_name == HOOKS[2]


def test_a_run_goes_on_in_the_middle_of_an_epoch_with_the_same_weights(
    cache, model, tmp_path, monkeypatch, no_tower
) -> None:
    whole = ViTSAETrainingRunner(_config(cache, model, tmp_path / "a"))
    whole.run()
    real, n_given = CacheStore.__next__, []

    def failing(store):
        if len(n_given) == 33:
            raise OSError("the network drive is gone")
        n_given.append(1)
        return real(store)

    with monkeypatch.context() as patch:
        patch.setattr(CacheStore, "__next__", failing)
        with pytest.raises(OSError, match="the network drive"):
            ViTSAETrainingRunner(_config(cache, model, tmp_path / "b")).run()
    resumed = ViTSAETrainingRunner.resume(tmp_path / "b")
    resumed.run()
    for name, weights in whole.sae.state_dict().items():
        assert torch.equal(weights, resumed.sae.state_dict()[name]), name


def test_a_run_from_a_cache_does_not_go_on_from_images(cache, model, tmp_path) -> None:
    ViTSAETrainingRunner(_config(cache, model, tmp_path)).run()
    with pytest.raises(ValueError, match=r"images: 'cache [0-9a-f]+' in the run, '[0-9a-f]+' now"):
        ViTSAETrainingRunner.resume(tmp_path, override_images=IMAGES).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_name": "blocks.2.hook_resid_post"}, "hook_name is 'blocks.2.hook_resid_post', but"),
        ({"token_kind": "patches"}, "token_kind is 'all' in the cache, but 'patches' now"),
        (
            {"seqpos_slice": (1, None)},
            r"seqpos_slice is \[None\] in .*, but \[1, None\] now",
        ),
        (
            {"model_name": "ViT-B-32"},
            r"model_name is 'shapes-clip' in .*, but 'ViT-B-32' now",
        ),
        (
            {
                "model_name": "shapes-clip",
                "model_from_pretrained_kwargs": {"pretrained": False, "init_seed": 3},
            },
            r"model_from_pretrained_kwargs\['init_seed'\] is None in the cache, but 3 now",
        ),
    ],
)
def test_a_cache_of_something_else_is_refused_with_both_values(
    cache, model, changes, message, no_tower
) -> None:
    with pytest.raises(CacheMismatchError, match=message):
        ViTSAETrainingRunner(_config(cache, model, **changes))


def test_a_model_with_other_weights_or_preprocessing_is_refused(cache, model) -> None:
    there = ActivationSource.from_model(model, HOOKS[0])
    other = HookedViT.from_pretrained("shapes-clip")
    with torch.no_grad():
        next(other.bare_model.visual.parameters()).add_(1e-3)
    with pytest.raises(CacheMismatchError, match=r"model_sha256 is [0-9a-f]{8} in the cache, but "):
        ViTSAETrainingRunner(_config(cache, model), override_model=other)
    from torchvision.transforms import Compose

    preprocess = Compose([*model.preprocess.transforms, torch.nn.Identity()])
    rewrapped = HookedViT.from_module(
        model.bare_model, preprocess=preprocess, tokenizer=model.tokenizer
    )
    assert there.preprocessing is not None
    with pytest.raises(CacheMismatchError, match=r"preprocessing is 'Compose.*' now; want the mod"):
        ViTSAETrainingRunner(_config(cache, model), override_model=rewrapped)


def test_a_run_that_measures_on_images_loads_the_tower(cache, model, tmp_path) -> None:
    cfg = _config(
        cache,
        model,
        tmp_path,
        training_tokens=20 * 128,
        eval_dataset_path="shapes:test?n_images=8",
        n_eval_images=8,
        eval_every_n_steps=10,
    )
    runner = ViTSAETrainingRunner(cfg)
    assert runner.model is not None
    runner.run()
    assert (
        read_metrics(tmp_path / "metrics.jsonl")["held_out_explained_variance"].notna().sum() == 2
    )


def test_a_transcoder_reads_both_hooks_from_one_cache(cache, model, tmp_path, no_tower) -> None:
    d_model = model.cfg.d_model
    sae = SkipTranscoderTrainingSAEConfig(
        d_in=d_model, d_out=d_model, d_sae=96, l1_coefficient=1e-3
    )
    cfg = _config(cache, model, tmp_path, sae=sae, hook_name=HOOKS[1], hook_name_out=HOOKS[2])
    runner = ViTSAETrainingRunner(cfg)
    runner.run()
    assert runner.sae.cfg.metadata.hook_name_out == HOOKS[2]
    assert (
        read_metrics(tmp_path / "metrics.jsonl")["loss"].iloc[-1]
        < read_metrics(tmp_path / "metrics.jsonl")["loss"].iloc[0]
    )


def test_images_may_be_given_as_a_cache_in_code(cache, model) -> None:
    runner = ViTSAETrainingRunner(
        _config("", model, model_name="shapes-clip", model_from_pretrained_kwargs={}),
        override_images=cache,
    )
    assert isinstance(runner.store, CacheStore)
    assert open_images("shapes").n_images == 100_000  # a word of its own, as ever
