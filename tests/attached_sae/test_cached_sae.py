"""What is computed from a cache is what its images give; what a cache lacks is refused."""

import copy
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import Transcoder, TranscoderConfig
from sae_lens.saes.sae import SAEMetadata

from tests.evaluation.tiny_setup import Pictures, tiny_hooked_vit, tiny_sae
from vit_sae_plugin.activations import ActivationSource
from vit_sae_plugin.activations.cache import CacheMismatchError, open_cache, write_cache
from vit_sae_plugin.analysis import LatentAtlas, analyze, one_pass
from vit_sae_plugin.attached_sae import CachedSAE
from vit_sae_plugin.datasets import ImageRecord
from vit_sae_plugin.evaluation import evaluate_sae

HOOK, MLP_IN, MLP_OUT = (
    "blocks.1.hook_resid_post",
    "blocks.1.hook_resid_mid",
    "blocks.1.hook_mlp_out",
)
QUICK = {"templates": ["a {}", "the {}"], "batch_size_contrastive": 3, "batch_size_images": 5}


class WithBroken(Pictures):
    """Every fifth picture can't be read."""

    def record(self, index):
        record = super().record(index)
        broken = ImageRecord(index, record.id, record.label, b"no picture")
        return broken if index % 5 == 3 else record


@pytest.fixture(scope="module")
def model():
    return tiny_hooked_vit()


@pytest.fixture(scope="module")
def cached(model, tmp_path_factory):
    """Caches of the same pictures: all tokens in two formats, and patches alone."""
    folder = tmp_path_factory.mktemp("caches")
    settings = {"images_per_shard": 4, "batch_size_images": 2, "progress": False}
    return {
        name: write_cache(
            folder / name, model, WithBroken(26), hook_names=hooks, **{**settings, **changes}
        )
        for name, hooks, changes in (
            ("float32", [HOOK, MLP_IN, MLP_OUT], {}),
            ("bfloat16", [HOOK], {"dtype": "bfloat16"}),
            ("patches", [HOOK], {"token_kind": "patches"}),
        )
    }


def biased(sae):
    """Latents that are active at different rates, one of them dead."""
    sae.b_enc.data = -torch.linspace(0, 3, sae.cfg.d_sae) * float(sae.W_enc.norm(dim=0).mean())
    sae.b_enc.data[7] = -1e6
    return sae


def assert_close_atlas(one: LatentAtlas, other: LatentAtlas, rtol: float):
    pd.testing.assert_frame_equal(one.latents, other.latents, rtol=rtol, atol=rtol)
    pd.testing.assert_frame_equal(one.images, other.images)
    pd.testing.assert_frame_equal(one.skipped_images, other.skipped_images)
    for name, table in one.references.items():
        np.testing.assert_array_equal(table.image, other.references[name].image)
        np.testing.assert_array_equal(table.peak_patch, other.references[name].peak_patch)
        # a sum that nearly cancels is as exact as its parts, not as itself
        wanted = other.references[name].value
        largest = np.abs(wanted[np.isfinite(wanted)]).max()
        np.testing.assert_allclose(table.value, wanted, rtol=rtol, atol=rtol * largest)
    np.testing.assert_array_equal(one.class_counts, other.class_counts)
    assert one.info.threshold == pytest.approx(other.info.threshold, rel=rtol)
    assert one.info.data_sha256 == other.info.data_sha256
    assert one.info.model_sha256 == other.info.model_sha256
    assert one.info.class_names == other.info.class_names


@pytest.mark.parametrize(
    ("cache", "token_kind"),
    [("float32", "all"), ("float32", "patches"), ("patches", "patches"), ("float32", "cls")],
)
def test_an_atlas_from_a_cache_is_the_images(model, cached, cache, token_kind):
    sae = biased(tiny_sae(model, HOOK, token_kind))
    settings = {"batch_size_images": 3, "progress": False, "n_reference_images": 3}
    wanted = analyze(model, sae, WithBroken(26), **settings)
    found = analyze(None, sae, f"cache:{cached[cache].path}", **settings)
    assert 0 < wanted.latents["is_dead"].sum() < sae.cfg.d_sae
    assert_close_atlas(found, wanted, rtol=2e-5 if token_kind == "cls" else 1e-5)


def test_an_analysis_of_a_cache_goes_on_where_it_was(model, cached, tmp_path, monkeypatch):
    sae = biased(tiny_sae(model))
    settings = {"batch_size_images": 3, "progress": False, "snapshot_seconds": 0}
    whole = analyze(None, sae, cached["float32"], **settings)
    n_given = 0
    take_in = one_pass.CacheFeed.take_in

    def stop_after_five(feed, builder, batch):
        nonlocal n_given
        n_given += 1
        if n_given == 6:
            raise RuntimeError("stopped")
        take_in(feed, builder, batch)

    monkeypatch.setattr(one_pass.CacheFeed, "take_in", stop_after_five)
    with pytest.raises(RuntimeError, match="stopped"):
        analyze(None, sae, cached["float32"], folder=tmp_path / "atlas", **settings)
    n_given = -100
    again = analyze(None, sae, cached["float32"], folder=tmp_path / "atlas", **settings)
    assert n_given == -100 + 8 - 5  # a batch of each of 7 shards, and one more of the second
    assert_close_atlas(again, whole, rtol=1e-6)


@pytest.mark.parametrize("n_images", [None, 9])
@pytest.mark.parametrize("token_kind", ["all", "patches"])
def test_tables_from_a_cache_are_the_images(model, cached, token_kind, n_images):
    sae = tiny_sae(model, HOOK, token_kind)
    wanted = evaluate_sae(model, sae, WithBroken(26), n_images=n_images, **QUICK)
    found = evaluate_sae(model, sae, cached["float32"], n_images=n_images, **QUICK)
    assert found.settings["n_images"] == wanted.settings["n_images"] == (n_images or 21)
    assert found.settings["images"] == wanted.settings["images"]
    assert n_images or found.settings["n_images_skipped"] == 5
    pd.testing.assert_frame_equal(found.reconstruction, wanted.reconstruction, rtol=1e-6)
    if n_images is None and token_kind == "all":
        # batches of the contrastive loss follow the order of images, which isn't the same
        columns = ["zero_shot_accuracy", "output_cosine"]
        pd.testing.assert_frame_equal(
            found.splicing[columns], wanted.splicing[columns], rtol=1e-4, atol=1e-6
        )


def test_bfloat16_is_off_by_its_rounding_only(model, cached):
    sae = tiny_sae(model)
    wanted = evaluate_sae(model, sae, WithBroken(26), splice=False)
    found = evaluate_sae(None, sae, cached["bfloat16"], splice=False)
    pd.testing.assert_frame_equal(found.reconstruction, wanted.reconstruction, rtol=5e-3)
    assert not found.reconstruction.equals(wanted.reconstruction)


def test_a_transcoder_reads_both_of_its_hooks(model, cached):
    torch.manual_seed(0)
    metadata = SAEMetadata(
        **ActivationSource.from_model(model, MLP_IN).to_metadata(), hook_name_out=MLP_OUT
    )
    cfg = TranscoderConfig(
        d_in=32, d_out=32, d_sae=48, apply_b_dec_to_input=False, metadata=metadata
    )
    sae = Transcoder(cfg)
    wanted = evaluate_sae(model, sae, WithBroken(26), splice=False)
    found = evaluate_sae(None, sae, cached["float32"], splice=False)
    pd.testing.assert_frame_equal(found.reconstruction, wanted.reconstruction, rtol=1e-6)
    with pytest.raises(ValueError, match=r"can't go on from 'all' tokens of blocks.1.hook_mlp_out"):
        evaluate_sae(model, sae, cached["float32"], **QUICK)


def test_what_a_cache_lacks_is_refused(model, cached):
    sae = tiny_sae(model)
    with pytest.raises(ValueError, match="want model=, or splice=False"):
        evaluate_sae(None, sae, cached["float32"])
    with pytest.raises(ValueError, match="model is None, which goes with a cache"):
        evaluate_sae(None, sae, Pictures())
    with pytest.raises(ValueError, match="model is None, which goes with a cache"):
        analyze(None, sae, Pictures())
    with pytest.raises(CacheMismatchError, match=r"model_sha256 is .* in the cache, but .* now"):
        evaluate_sae(tiny_hooked_vit_of_seed(1), sae, cached["float32"])
    with pytest.raises(CacheMismatchError, match=r"'patches', \(None,\)\) in the cache, but"):
        CachedSAE(cached["patches"], sae)
    patches = tiny_sae(model, token_kind="patches")
    with pytest.raises(ValueError, match="can't go on from 'patches' tokens"):
        evaluate_sae(model, patches, cached["patches"], **QUICK)
    other_hook = tiny_sae(model, "blocks.0.hook_resid_post")
    with pytest.raises(CacheMismatchError, match=r"hook_name is 'blocks.0.hook_resid_post', but"):
        CachedSAE(cached["float32"], other_hook)
    other_weights = copy.deepcopy(sae)
    other_weights.cfg.metadata.model_sha256 = "f" * 64
    with pytest.raises(CacheMismatchError, match="but ffffffff now"):
        analyze(None, other_weights, cached["float32"])
    nameless = copy.deepcopy(sae)
    nameless.cfg.metadata.hook_name = None
    with pytest.raises(ValueError, match=re.escape("source=cache.source(hook_name)")):
        CachedSAE(cached["float32"], nameless)
    with pytest.raises(TypeError, match="holds activations, no pictures"):
        CachedSAE(cached["float32"], sae).images.record(0)


def tiny_hooked_vit_of_seed(seed: int):
    model = tiny_hooked_vit()
    with torch.no_grad():
        next(model.bare_model.parameters()).add_(0.01 * seed)
    return model


def test_what_is_finished_of_a_cache_is_not_taken_for_all_of_it(model, cached, tmp_path):
    whole = cached["float32"]
    shutil.copytree(whole.path, tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "shards" / "shard-000001")
    part = open_cache(f"cache:{tmp_path / 'part'}?partial=true")
    sae = biased(tiny_sae(model))
    atlas = analyze(None, sae, part, progress=False)
    assert len(atlas.images) == 17  # four of the shard that is missing were readable
    assert atlas.info.data_sha256 != WithBroken(26).fingerprint()
    assert CachedSAE(whole, sae).images.fingerprint() == WithBroken(26).fingerprint()
