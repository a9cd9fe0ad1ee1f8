"""Batches, order, saving and resuming must not show in the result."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.five_images import build, feed, make_atlas, make_builder
from tests.c_compiler import WAYS, doing_it
from vit_sae_plugin.aggregation.activation_histogram import ActivationHistogram
from vit_sae_plugin.analysis.atlas.latent_atlas import LatentAtlas
from vit_sae_plugin.analysis.counting import coactivation, largest_keys
from vit_sae_plugin.analysis.counting.coactivation import CoActivation, scramble
from vit_sae_plugin.analysis.counting.decoder_similarity import decoder_neighbors
from vit_sae_plugin.analysis.counting.label_statistics import label_entropy
from vit_sae_plugin.analysis.counting.largest_keys import LargestKeys, pack, unpack
from vit_sae_plugin.analysis.counting.latent_batch import LatentBatch
from vit_sae_plugin.analysis.counting.token_scan import scan_tokens


def assert_same_atlas(one, other):
    pd.testing.assert_frame_equal(one.latents, other.latents)
    pd.testing.assert_frame_equal(one.images, other.images)
    assert one.info == other.info
    for name, table in one.references.items():
        for part in ("image", "value", "peak_patch"):
            np.testing.assert_array_equal(
                getattr(table, part), getattr(other.references[name], part)
            )
    for part in ("histogram", "histogram_edges", "class_counts", "class_n_images"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    for part in ("coactive_partners", "similar_partners"):
        np.testing.assert_array_equal(getattr(one, part).latent, getattr(other, part).latent)
        np.testing.assert_array_equal(getattr(one, part).score, getattr(other, part).score)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(5)), batch_size=st.integers(1, 5))
def test_order_and_batches_do_not_show(order, batch_size):
    builder = make_builder()
    for some in torch.tensor(order).split(batch_size):
        feed(builder, some)
    assert_same_atlas(build(builder), make_atlas())


def test_a_builder_goes_on_from_its_saved_state():
    builder = make_builder()
    feed(builder, torch.tensor([3, 1]))
    builder.settle()
    state = {name: tensor.clone() for name, tensor in builder.state_dict().items()}
    again = make_builder()
    again.load_state_dict(state)
    again.load_image_table(builder.image_table())
    feed(again, torch.tensor([0, 4, 2]))
    assert_same_atlas(build(again), make_atlas())


def test_an_atlas_survives_its_folder(tmp_path):
    atlas = make_atlas()
    atlas.save(tmp_path / "atlas")
    again = LatentAtlas.load(tmp_path / "atlas")
    assert_same_atlas(again, atlas)
    assert {p.name for p in (tmp_path / "atlas").iterdir()} == {
        "atlas.json",
        "latents.parquet",
        "images.parquet",
        "reference_images.safetensors",
        "histograms.safetensors",
        "class_counts.safetensors",
        "partners.safetensors",
        "skipped_images.csv",
    }


@pytest.mark.parametrize(
    "foreign", ["images.parquet", "skipped_images.csv", "unfinished-notes.txt", "run/config.yaml"]
)
def test_what_is_no_atlas_is_not_touched(tmp_path, foreign):
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("mine")
    with pytest.raises(ValueError, match="holds files that are no atlas, such as"):
        make_atlas().save(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / foreign]
    assert (tmp_path / foreign).read_text() == "mine"
    with pytest.raises(ValueError, match="is a file; name a folder"):
        make_atlas().save(tmp_path / foreign)


def test_other_files_beside_an_atlas_stay(tmp_path):
    make_atlas().save(tmp_path)
    (tmp_path / "names.json").write_text("{}")
    make_atlas().save(tmp_path)
    assert (tmp_path / "names.json").read_text() == "{}"


def test_folders_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no atlas \(atlas.json is missing\)"):
        LatentAtlas.load(tmp_path)
    make_atlas().save(tmp_path)
    path = tmp_path / "atlas.json"
    written = json.loads(path.read_text())
    written.pop("sha256")  # of the file itself
    path.write_text(json.dumps(written | {"schema_version": 99}))
    version = written["schema_version"]
    with pytest.raises(
        ValueError, match=f"schema version 99; this release reads version {version}"
    ):
        LatentAtlas.load(tmp_path)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 5), batch_size=st.integers(1, 40))
def test_largest_keys_are_those_of_a_sort(way, seed, k, batch_size):
    with doing_it(way, largest_keys):
        check_largest_keys(seed, k, batch_size)


def test_many_latents_are_merged_in_blocks(monkeypatch):
    monkeypatch.setattr(largest_keys, "_ENTRIES_AT_ONCE", 4)  # two latents at a time
    with doing_it("torch", largest_keys):
        check_largest_keys(seed=0, k=2, batch_size=9)


def check_largest_keys(seed, k, batch_size):
    generator = torch.Generator().manual_seed(seed)
    # few distinct values, so that many tie
    values = torch.randint(0, 4, (30, 3), generator=generator).float() / 4
    kept = LargestKeys(3, k, with_payload=True)
    seen = torch.tensor([], dtype=torch.long)
    for some in torch.randperm(30, generator=generator).split(batch_size):
        entered = kept.offer(values[some], some, some[:, None].expand(-1, 3))
        seen = torch.cat([seen, some[entered]])
    kept.settle()
    value, index = unpack(kept.keys)
    assert set(index.flatten().tolist()) - {-1} <= set(seen.tolist())
    for latent in range(3):
        best = sorted((-values[i, latent].item(), i) for i in range(30) if values[i, latent] > 0)
        best += [(float("nan"), -1)] * k
        assert index[latent].tolist() == [i for _, i in best[:k]]
        assert kept.payload[latent].tolist() == [i for _, i in best[:k]]
        np.testing.assert_array_equal(value[latent].numpy(), [-v for v, _ in best[:k]])


def test_keys_hold_any_value_and_index():
    value = torch.tensor([1e-45, 1e-30, 0.3, 65504.0, 3e38])
    index = torch.tensor([0, 2**32 - 1, 7, 2**31, 1])
    again_value, again_index = unpack(pack(value, index))
    assert torch.equal(again_value, value)
    assert torch.equal(again_index, index)
    assert pack(value, index).diff().gt(0).all()


def test_image_hashes_are_all_different():
    assert len(scramble(torch.arange(2**20)).unique()) == 2**20
    # low and high indices are spread alike
    assert abs(scramble(torch.arange(2**16)).double().mean() / 2**32 - 0.5) < 0.01


def sets_to_batches(active, batch_size, generator):
    for some in torch.randperm(len(active), generator=generator).split(batch_size):
        latents = active[some].float().unsqueeze(1)
        scan = scan_tokens(latents, torch.tensor([0]), 0.2, ActivationHistogram(latents.shape[2]))
        yield LatentBatch(latents, some, torch.full_like(some, -1), scan, 0.2)


def test_coactivation_of_frequent_latents_is_estimated_within_its_error():
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    context = torch.rand(n, 1, generator=generator)
    active = torch.rand(n, 12, generator=generator) < context * torch.linspace(0.05, 1, 12)
    sketched = CoActivation(12, n_sampled_images=256)
    for batch in sets_to_batches(active, 1000, generator):
        sketched.update(batch)
    partners = sketched.partners(active.sum(dim=0), 11)
    together = active.double().T @ active.double()
    size = active.sum(dim=0)
    exact = together / (size[:, None] + size - together)
    for latent in range(12):
        others = partners.latent[latent][partners.latent[latent] >= 0]
        error = partners.score[latent, : len(others)] - exact[latent, others].numpy()
        assert np.abs(error).max() < 0.1
        assert np.abs(error).mean() < 0.03


@pytest.mark.parametrize("crowded", [0, 0.1, 1])  # all pairs multiplied, some, none
def test_coactivation_of_rare_latents_is_exact_in_any_order(monkeypatch, crowded):
    monkeypatch.setattr(coactivation, "_CROWDED", crowded)
    monkeypatch.setattr(coactivation, "_PAIRS_AT_ONCE", 150)  # seven latents at a time
    generator = torch.Generator().manual_seed(1)
    active = torch.rand(300, 20, generator=generator) < 0.1
    together = active.double().T @ active.double()
    size = active.sum(dim=0)
    exact = (together / (size[:, None] + size - together)).fill_diagonal_(0)
    for batch_size in (7, 300):
        counted = CoActivation(20, n_sampled_images=64)
        for batch in sets_to_batches(active, batch_size, generator):
            counted.update(batch)
            counted.sketch.settle()
        partners = counted.partners(size, 5)
        best = exact.sort(dim=1, descending=True, stable=True)
        np.testing.assert_allclose(partners.score, best.values[:, :5].numpy(), rtol=1e-6)
        np.testing.assert_array_equal(partners.latent, best.indices[:, :5].numpy())


def test_entropy_counts_a_label_once():
    value = np.array([[1.0, 1.0, 1.0, 1.0], [4.0, 2.0, 1.0, 1.0]])
    label = np.array([[5, 5, 5, 5], [1, 2, 3, 1]])
    expected = [0, -(5 / 8 * np.log(5 / 8) + 1 / 4 * np.log(1 / 4) + 1 / 8 * np.log(1 / 8))]
    np.testing.assert_allclose(label_entropy(value, label), expected, atol=1e-12)


def test_a_decoder_row_of_zeros_is_like_no_other():
    neighbours = decoder_neighbors(torch.tensor([[1.0, 0], [0, 0], [-1, 0]]), 2)
    assert neighbours.latent.tolist() == [[2, -1], [-1, -1], [0, -1]]
