"""What is read from a cache is what the model gives, row by row, whatever the format."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.activations.cache.small_cache import (
    D_MODEL,
    HOOKS,
    N_TOKENS,
    all_rows,
    direct_rows,
    images_of,
    small_cache,
    small_model,
)
from vit_sae_plugin.activations.cache import (
    ActivationCache,
    CachePlan,
    DamagedCacheError,
    plan_cache,
    verify_cache,
    write_shard,
)
from vit_sae_plugin.activations.cache.cache_names import open_cache
from vit_sae_plugin.activations.cache.row_formats import ROW_FORMATS, RoundingLoss, row_format
from vit_sae_plugin.datasets import ArrayImages
from vit_sae_plugin.datasets.image_decoding import DecodingLimits
from vit_sae_plugin.fingerprints import values_sha256


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def cache(model, tmp_path_factory) -> ActivationCache:
    return small_cache(tmp_path_factory.mktemp("cache") / "cache", model)


@pytest.mark.parametrize("hook", HOOKS)
def test_rows_are_the_models(model, cache, hook) -> None:
    assert (cache.n_images, cache.n_rows, cache.d_in(hook)) == (10, 10 * N_TOKENS, D_MODEL)
    assert cache.shards == [0, 1, 2]
    expected = direct_rows(model, images_of(10), hook)
    torch.testing.assert_close(all_rows(cache, hook), expected, rtol=1e-4, atol=1e-5)


def test_each_row_lies_beside_its_own_coordinates(model, cache) -> None:
    expected = direct_rows(model, images_of(10), HOOKS[1])
    seen = []
    for shard in cache.shards:
        rows, places = cache.rows(HOOKS[1], shard), cache.coordinates(shard)
        for row, (image, y, x, kind, token) in zip(rows, places.tolist(), strict=True):
            assert (y, x, kind) == ((-1, -1, 0) if token == 0 else (*divmod(token - 1, 4), 3))
            np.testing.assert_allclose(row, expected[image, token], rtol=1e-4, atol=1e-5)
            seen.append((image, token))
    assert sorted(seen) == [(image, token) for image in range(10) for token in range(N_TOKENS)]


def test_rows_of_a_shard_lie_in_a_random_order_of_their_own(cache) -> None:
    orders = [
        cache.coordinates(s)[:, 4] + N_TOKENS * (cache.coordinates(s)[:, 0] - 4 * s) for s in (0, 1)
    ]
    for order in orders:
        assert sorted(order) == list(range(4 * N_TOKENS))
        # of 67 neighbours in a random order, about one keeps its neighbour
        assert np.sum(np.diff(order) == 1) < 8
    assert not np.array_equal(*orders)


def test_images_come_with_ids_and_labels(model, tmp_path) -> None:
    images = images_of(5, labels=[2, 0, 1, 1, 0], class_names=["x", "y", "z"])
    cache = small_cache(tmp_path / "c", model, images)
    assert cache.image_ids == list("01234")
    assert cache.class_names == ["x", "y", "z"]
    batches = list(cache.images_in_order(HOOKS[0], batch_size_images=3))
    assert [batch.ids for batch in batches] == [["0", "1", "2"], ["3"], ["4"]]
    assert torch.cat([batch.label for batch in batches]).tolist() == [2, 0, 1, 1, 0]
    assert torch.cat([batch.index for batch in batches]).tolist() == [0, 1, 2, 3, 4]


def test_unreadable_images_have_no_rows_and_are_listed(model, tmp_path) -> None:
    pictures = [record.load() for record in images_of(9).records()]
    for broken in (1, 4, 5, 6, 7):  # one of the first shard, the whole second
        pictures[broken] = np.zeros((64, 64, 3), dtype=np.uint8)
    images = ArrayImages(pictures, limits=DecodingLimits(max_pixels=2000))
    cache = small_cache(tmp_path / "c", model, images)
    assert cache.image_ids == ["0", "2", "3", "8"]
    assert [cache.entries[shard].n_rows for shard in cache.shards] == [3 * 17, 0, 17]
    assert cache.skipped.to_frame()["index"].tolist() == [1, 4, 5, 6, 7]
    expected = direct_rows(model, images_of(9), HOOKS[0])[[0, 2, 3, 8]]
    torch.testing.assert_close(all_rows(cache, HOOKS[0]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_formats_hold_what_they_can(model, cache, tmp_path, dtype) -> None:
    small = small_cache(tmp_path / "c", model, dtype=dtype)
    exact, stored = all_rows(cache, HOOKS[0]), all_rows(small, HOOKS[0])
    if dtype == "int8":  # half a step, of which there are 127 up to the largest
        bound = exact.abs().amax(dim=-1, keepdim=True) / 127 * 0.5
        assert ((stored - exact).abs() <= bound * 1.001).all()
    else:
        assert torch.equal(stored, exact.to(getattr(torch, dtype)).float())
    wanted = sum(row_format(dtype).row_bytes(D_MODEL) for _ in HOOKS) + 20
    assert small.plan.image_bytes() == N_TOKENS * wanted
    found = sum(
        f["size"] for e in small.entries.values() for n, f in e.files.items() if n.endswith(".bin")
    )
    assert found == 10 * small.plan.image_bytes()


def test_int8_by_hand() -> None:
    numbers, scales = ROW_FORMATS["int8"].encode(torch.tensor([[254.0, -2.0, 3.1], [0, 0, 0]]))
    assert numbers.tolist() == [[127, -1, 2], [0, 0, 0]]
    assert scales is not None
    assert scales.tolist() == [2.0, 0.0]
    assert ROW_FORMATS["int8"].decode(numbers, scales).tolist() == [[254, -2, 4], [0, 0, 0]]


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float16", 7e4, "an activation is 7e\\+04, more than float16 holds; want bfloat16"),
        ("float32", torch.nan, "some activations are NaN or infinite"),
        ("int8", torch.inf, "some activations are NaN or infinite"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(dtype, value, message) -> None:
    with pytest.raises(ValueError, match=message):
        row_format(dtype).encode(torch.tensor([[1.0, value]]))


def test_int8_is_refused_where_it_would_harm(tmp_path) -> None:
    # rows of mean 100 and variance 1 in the one feature that varies; rounded by 0, 0, 0.5, 0.5
    loss = RoundingLoss()
    rows = torch.tensor([[99.0, 7], [101, 7], [99, 7], [101, 7]])
    loss.add(rows[:2], rows[:2])
    loss.add(rows[2:], rows[2:] + 0.5)
    assert loss.share == pytest.approx(4 * 0.25 / 4)

    model = small_model()
    small_cache(tmp_path / "fits", model, dtype="int8")
    with torch.no_grad():  # a massive feature, as large CLIPs have them
        model.bare_model.visual.transformer.resblocks[0].mlp.c_proj.bias[3] += 100
    with pytest.raises(ValueError, match=r"int8 would take .*% of the variance of blocks.0.hook_r"):
        small_cache(tmp_path / "harmed", model, dtype="int8")
    assert ActivationCache(tmp_path / "harmed", partial=True).shards == []
    small_cache(tmp_path / "b", model, dtype="bfloat16")


def test_a_shard_written_alone_is_the_one_written_among_others(model, cache, tmp_path) -> None:
    settings = {"hook_names": HOOKS, "images_per_shard": 4, "batch_size_images": 2}
    plan = plan_cache(tmp_path / "c", model, images_of(10), **settings)
    entry = write_shard(plan, 1, model, images_of(10))
    assert entry.files == cache.entries[1].files
    assert ActivationCache(tmp_path / "c", partial=True).shards == [1]
    with pytest.raises(ValueError, match=r"1 of 3 shards \(the first that is missing is 0\)"):
        ActivationCache(tmp_path / "c")


def test_patches_alone_and_pooled_hooks(model, tmp_path) -> None:
    patches = small_cache(tmp_path / "p", model, token_kind="patches", hook_names=HOOKS[:1])
    expected = direct_rows(model, images_of(10), HOOKS[0])[:, 1:]
    torch.testing.assert_close(all_rows(patches, HOOKS[0]), expected, rtol=1e-4, atol=1e-5)
    pooled = small_cache(tmp_path / "i", model, hook_names=["hook_image_embed"])
    assert pooled.n_tokens == 1
    assert pooled.plan.tokens == [[-1, -1, 4]]
    with pytest.raises(ValueError, match="hook_resid_post has 17 tokens and hook_image_embed 1; "):
        small_cache(tmp_path / "both", model, hook_names=[HOOKS[0], "hook_image_embed"])


def test_the_manifest_is_read_back_and_says_when_it_was_edited(cache, tmp_path) -> None:
    assert CachePlan.load(cache.path) == cache.plan
    text = (cache.path / "cache.json").read_text()
    for edited, message in (
        (text.replace('"float32"', '"float16"'), "damaged or was edited"),
        (text[:-20], "damaged"),
        ("[]", "no JSON object"),
        (text.replace('"version": 1', '"version": 9'), "of version 9; want"),
    ):
        (tmp_path / "cache.json").write_text(edited)
        with pytest.raises(ValueError, match=message):
            CachePlan.load(tmp_path)
    values = cache.plan.to_dict()
    values.pop("sha256")
    values["hooks"] = {"../../outside": 32}
    (tmp_path / "cache.json").write_text(json.dumps({**values, "sha256": values_sha256(values)}))
    with pytest.raises(ValueError, match="want letters, digits, dots and _"):
        CachePlan.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": None}, "parts is None; want the sources of images"),
        ({"parts": []}, "parts is .*; want the sources of images, one object each"),
        ({"parts": ["photos"]}, "parts is .'photos'.; want the sources"),
        ({"parts": [{"name": "photos"}]}, "parts: fingerprint is missing"),
        ({"n_images": -1}, r"n_images of the parts is \[-1\]; want 0 to 2147483647"),
        ({"n_images": 10.0}, "a number is 10.0; want whole ones"),
        ({"strange": 1}, "strange"),
        ({"images_per_shard": 0}, "images_per_shard is 0 and batch_size_images is 2; want 1 or"),
        ({"images_per_shard": 3}, "images_per_shard is 3 .* whole batches in a shard"),
        ({"batch_size_images": 0}, "batch_size_images is 0; want 1 or more"),
        ({"seed": -1}, "seed is -1; want 0 or more"),
        ({"dtype": "float8"}, "dtype is 'float8'; want one of float32"),
        ({"hooks": {}}, "hooks is {}; want one or more"),
        ({"hooks": {"h": 0}}, "hooks is {'h': 0}; want one or more, and widths of 1 or more"),
        ({"hooks": {"h": "wide"}}, "hooks: h is 'wide', a str; want int"),
        ({"hooks": {"../h": 32}}, "want letters, digits, dots and _"),
        ({"tokens": [[0, 0]]}, r"tokens is \[\[0, 0\]\]; want row, column and kind"),
        ({"tokens": [[0, 0, 9]]}, r"kind \(0 to 4\) of each"),
    ],
)
def test_a_manifest_made_by_hand_is_refused_in_one_line(cache, tmp_path, changes, message) -> None:
    values = cache.plan.to_dict()
    values.pop("sha256")
    part = {name: changes[name] for name in changes if name in ("n_images", "strange")}
    values["parts"][0].update(part)
    values.update({name: value for name, value in changes.items() if name not in part})
    values = {name: value for name, value in values.items() if value is not None}
    (tmp_path / "cache.json").write_text(json.dumps({**values, "sha256": values_sha256(values)}))
    with pytest.raises(DamagedCacheError, match=f"cache.json is damaged .*{message}.*restore a"):
        CachePlan.load(tmp_path)


def test_a_missing_or_short_file_is_damage_not_a_crash(model, tmp_path) -> None:
    cache = small_cache(tmp_path / "c", model)
    path = cache.path / "shards" / "shard-000001" / f"{HOOKS[0]}.rows.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(
        DamagedCacheError, match=r"shard 1 is damaged: .* has 8700 bytes where 8704"
    ):
        cache.rows(HOOKS[0], 1)
    path.unlink()
    with pytest.raises(DamagedCacheError, match=r"shard 1 is damaged: .*can't be read"):
        cache.rows(HOOKS[0], 1)


def test_some_of_the_images_are_read_in_order(model, cache, tmp_path) -> None:
    whole = all_rows(cache, HOOKS[0])
    batches = list(cache.images_in_order(HOOKS[0], 3, index=[9, 1, 2, 4]))
    assert [batch.index.tolist() for batch in batches] == [[1, 2], [4], [9]]
    assert torch.equal(torch.cat([batch.acts_btd for batch in batches]), whole[[1, 2, 4, 9]])
    for start in range(6):  # batches of 3 and 1, 3 and 1, 2
        later = list(cache.images_in_order(HOOKS[0], 3, start_batch=start))
        first = [0, 3, 4, 7, 8, 10][start]
        assert [i for batch in later for i in batch.index.tolist()] == list(range(first, 10))
        assert not later or torch.equal(torch.cat([b.acts_btd for b in later]), whole[first:])


def test_a_text_names_a_cache(model, cache) -> None:
    assert open_cache(cache) is cache
    assert open_cache(f"cache:{cache.path}").fingerprint() == cache.fingerprint()
    assert open_cache(f"cache:{cache.path}?partial=true").n_images == 10
    assert open_cache("shapes") is None
    with pytest.raises(FileNotFoundError, match="there is no activation cache in 'nowhere'"):
        open_cache("cache:nowhere")


def test_what_others_put_beside_shards_is_no_shard(model, tmp_path) -> None:
    cache = small_cache(tmp_path / "c", model)
    for name in ("shard-²", "shard-7", "shard-0000001", "shard-999999999", "shard-x"):
        (cache.path / "shards" / name).mkdir()
    assert ActivationCache(cache.path).n_rows == cache.n_rows
    assert verify_cache(cache.path) == {}


@pytest.mark.parametrize("n_rows", [2**63, -1, "4", None, [4]])
def test_sizes_that_cannot_be_are_damage(model, tmp_path, n_rows) -> None:
    cache = small_cache(tmp_path / "c", model)
    path = cache.path / "shards" / "shard-000001" / "shard.json"
    values = {**json.loads(path.read_text()), "n_rows": n_rows}
    values.pop("sha256")
    path.write_text(json.dumps({**values, "sha256": values_sha256(values)}))
    with pytest.raises(DamagedCacheError, match="shard 1 is damaged"):
        ActivationCache(cache.path).rows(HOOKS[0], 1)
    assert list(verify_cache(cache.path)) == [1]
    values["files"], values["n_rows"] = {"coordinates.bin": 5}, 4
    path.write_text(json.dumps({**values, "sha256": values_sha256(values)}))
    assert list(verify_cache(cache.path)) == [1]
