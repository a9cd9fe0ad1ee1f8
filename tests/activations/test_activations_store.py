"""The store: every row of every image once an epoch, well mixed, and resumable to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from sae_lens import TopKTrainingSAEConfig
from torch import Tensor

from tests.tiny_models import tiny_open_clip, tiny_open_clip_custom_text
from vit_sae_plugin.activations import ViTActivationsStore
from vit_sae_plugin.datasets import ArrayImages
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.training import ViTSAERunnerConfig, ViTSAETrainingRunner

N_TOKENS = 17
HOOK = "blocks.0.hook_resid_post"


def _to_pixels(image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


def _images(n_images: int, seed: int = 0) -> ArrayImages:
    generator = np.random.default_rng(seed)
    return ArrayImages(generator.integers(0, 256, (n_images, 32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model() -> HookedViT:
    return HookedViT.from_module(tiny_open_clip(), preprocess=_to_pixels)


def _store(model: HookedViT, images=None, **changes) -> ViTActivationsStore:
    settings = {
        "hook_name": HOOK,
        "train_batch_size_tokens": 34,
        "store_batch_size_images": 3,
        "n_batches_in_buffer": 4,
        "seed": 5,
    }
    return ViTActivationsStore(model, images or _images(8), **{**settings, **changes})


def _rows_of(model: HookedViT, images: ArrayImages, hook: str = HOOK) -> Tensor:
    pixels = torch.stack([_to_pixels(record.load()) for record in images.records()])
    with torch.no_grad():
        _, cache = model.run_with_cache(pixels, names_filter=hook)
    return cache[hook]


def _sorted_rows(rows: Tensor) -> Tensor:
    # equal rows need not be bit-equal between batch sizes, so order by a rounded key
    return rows[np.lexsort(rows.double().numpy().round(4).T)]


def test_an_epoch_serves_every_token_of_every_image_once(model) -> None:
    images = _images(8)
    # 8 images x 17 tokens are exactly the 4 batches of 34 of one buffer
    served = torch.cat(list(islice(_store(model, images), 4)))
    expected = _rows_of(model, images).flatten(0, 1)
    torch.testing.assert_close(_sorted_rows(served), _sorted_rows(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "positions"), [("patches", slice(1, None)), ("cls", slice(0, 1))])
def test_token_kinds(model, kind, positions) -> None:
    images = _images(8)
    expected = _rows_of(model, images)[:, positions].flatten(0, 1)
    store = _store(model, images, token_kind=kind, train_batch_size_tokens=len(expected) // 4)
    served = torch.cat(list(islice(store, 4)))
    torch.testing.assert_close(_sorted_rows(served), _sorted_rows(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("hook", "d_in"),
    [("blocks.1.attn.hook_z", 32), ("blocks.1.mlp.hook_post", 128), ("hook_image_embed", 24)],
)
def test_rows_have_the_hooks_width_heads_flattened(model, hook, d_in) -> None:
    store = _store(model, hook_name=hook)
    assert store.d_in == d_in
    assert next(store).shape == (34, d_in)


def test_image_embeddings_give_one_row_an_image(model) -> None:
    images = _images(8)
    store = _store(model, images, hook_name="hook_image_embed", train_batch_size_tokens=2)
    served = torch.cat(list(islice(store, 4)))
    expected = _rows_of(model, images, "hook_image_embed")
    torch.testing.assert_close(_sorted_rows(served), _sorted_rows(expected), rtol=1e-4, atol=1e-5)


def test_a_16_bit_model_gives_32_bit_rows_where_asked() -> None:
    model = HookedViT.from_module(tiny_open_clip(), preprocess=_to_pixels).to(torch.bfloat16)
    rows = next(_store(model, dtype=torch.float32))
    assert rows.dtype == torch.float32
    assert torch.equal(rows, rows.bfloat16().float())
    assert next(_store(model, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_model_in_training_mode_gives_no_random_rows(model) -> None:
    in_training = HookedViT.from_module(
        tiny_open_clip_custom_text(patch_dropout=0.5).train(), preprocess=_to_pixels
    )
    assert torch.equal(next(_store(in_training)), next(_store(in_training)))
    assert next(_store(in_training)).shape == (34, 32)


def test_same_seed_same_rows_other_seed_other_rows(model) -> None:
    first, again = next(_store(model)), next(_store(model))
    assert torch.equal(first, again)
    assert not torch.equal(first, next(_store(model, seed=6)))


def test_workers_do_not_change_the_rows(model) -> None:
    alone, helped = _store(model), _store(model, n_workers=1)
    for _ in range(6):
        assert torch.equal(next(alone), next(helped))


def test_the_global_generator_is_left_alone(model) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    next(_store(model))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("n_served", [0, 1, 3, 4, 5, 8, 13])
def test_a_store_goes_on_to_the_bit_wherever_it_was(model, n_served) -> None:
    # batches of 30 from 5 images: buffers, image batches and epochs end at different places
    settings = {"train_batch_size_tokens": 30, "images": _images(5)}
    store = _store(model, **settings)
    for _ in range(n_served):
        next(store)
    state = store.state_dict()
    resumed = _store(model, **settings)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for expected in islice(store, 10):
        assert torch.equal(next(resumed), expected)


def test_an_interrupt_while_the_buffer_fills_loses_nothing(model) -> None:
    store, undisturbed = _store(model), _store(model)
    forward, calls = model.forward, []

    def interrupted_once(*args, **kwargs):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    model.forward = interrupted_once  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            next(store)
        for _ in range(6):
            assert torch.equal(next(store), next(undisturbed))
    finally:
        del model.forward


class _ImageNumbers(HookedViT):
    """Gives each row its image's number and its token's, to see where rows come from."""

    def forward(self, pixels, stop_at_layer=None):  # type: ignore[override]
        acts = torch.zeros(len(pixels), N_TOKENS, self.cfg.d_model)
        acts[..., 0] = pixels[:, 0, 0, 0, None]
        acts[..., 1] = torch.arange(N_TOKENS)
        return self.hook_dict[HOOK](acts)


def _numbered(n_images: int) -> tuple[_ImageNumbers, ArrayImages]:
    images = np.zeros((n_images, 32, 32, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(n_images) % 256
    images[:, 0, 0, 1] = np.arange(n_images) // 256

    def to_number(image) -> Tensor:
        low, high, _ = np.array(image)[0, 0].astype(float)
        return torch.full((3, 32, 32), low + 256 * high)

    return _ImageNumbers.from_module(tiny_open_clip(), preprocess=to_number), ArrayImages(images)


def _n_images_in(batches: Iterator[Tensor], n_batches: int) -> float:
    return float(np.mean([len(batch[:, 0].unique()) for batch in islice(batches, n_batches)]))


def test_rows_that_overflow_a_buffer_open_the_next() -> None:
    model, images = _numbered(8)
    # buffers of 90 rows end within image batches of 51, and after 45 epochs of 136 with one
    store = _store(model, images, n_batches_in_buffer=3, train_batch_size_tokens=30)
    served = torch.cat(list(islice(store, 45 * 136 // 30)))
    rows, counts = served[:, :2].unique(dim=0, return_counts=True)
    assert len(rows) == 8 * N_TOKENS
    assert set(counts.tolist()) == {45}


def test_a_batch_draws_on_as_many_images_as_uniform_sampling_from_the_buffer() -> None:
    model, images = _numbered(400)
    batch, n_batches, n_in_buffer = 170, 20, 200
    store = _store(model, images, train_batch_size_tokens=batch, n_batches_in_buffer=n_batches)
    assert n_in_buffer * N_TOKENS == batch * n_batches
    generator = np.random.default_rng(0)
    buffer = np.repeat(np.arange(n_in_buffer), N_TOKENS)
    uniform = np.mean(
        [len(np.unique(generator.choice(buffer, batch, replace=False))) for _ in range(200)]
    )
    seen = _n_images_in(store, 2 * n_batches)
    assert seen == pytest.approx(uniform, rel=0.05)
    # without the shuffle it would be 10 images a batch
    assert uniform > 100


def test_shuffling_images_mixes_more_of_the_data_into_a_buffer() -> None:
    model, images = _numbered(40)
    in_order = _store(model, images, shuffle_images=False, n_batches_in_buffer=5)
    # 5 batches of 34 rows are the first 10 images in source order
    assert set(torch.cat(list(islice(in_order, 5)))[:, 0].tolist()) == set(range(10))
    shuffled = _store(model, images, n_batches_in_buffer=5)
    assert set(torch.cat(list(islice(shuffled, 5)))[:, 0].tolist()) != set(range(10))


def test_skipped_images_are_counted_and_the_rest_used(model) -> None:
    class WithHoles(ArrayImages):
        def record(self, index):
            record = super().record(index)
            return record if index % 2 else type(record)(index, str(index), None, b"no image")

    images = WithHoles(np.zeros((6, 32, 32, 3), dtype=np.uint8))
    store = _store(model, images, n_batches_in_buffer=1)
    next(store)
    next(store)
    assert sorted(store.skipped.to_frame()["index"]) == [0, 2, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_batch_size_tokens": 0}, "train_batch_size_tokens is 0; want 1 or more"),
        ({"token_kind": "patch"}, "want 'all', 'patches' or 'cls'"),
        ({"hook_name": "blocks.9.hook_resid_post"}, "near names"),
        ({"seqpos_slice": (17, None)}, "leaves none of the 17 tokens"),
    ],
)
def test_bad_settings_are_refused(model, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        _store(model, **changes)


def test_a_model_without_preprocessing_is_refused() -> None:
    with pytest.raises(ValueError, match="pass preprocess= to HookedViT"):
        _store(HookedViT.from_module(tiny_open_clip()))


def test_a_store_shows_what_it_reads(model):
    assert repr(_store(model, _images(3))) == (
        "<ViTActivationsStore of <ArrayImages 'arrays': 3 images>: all tokens at "
        "blocks.0.hook_resid_post, batches of 34 rows of 32>"
    )


@pytest.mark.parametrize("kind", ["all", "patches", "cls"])
def test_rows_say_where_they_come_from(model, kind) -> None:
    images = _images(8)
    store = _store(model, images, token_kind=kind, with_coordinates=True)
    plain = _store(model, images, token_kind=kind)
    expected = _rows_of(model, images)
    n_rows = 0
    while n_rows < 2 * 8 * N_TOKENS:  # across buffers and epochs
        rows = next(store)
        assert torch.equal(rows, next(plain))
        image, row, column = store.coordinates.T
        position = torch.where(row < 0, 0, 1 + row * 4 + column)
        torch.testing.assert_close(rows, expected[image, position], rtol=1e-4, atol=1e-5)
        assert ((row >= 0) == (column >= 0)).all()
        if kind != "all":
            assert ((row >= 0) == (kind == "patches")).all()
        n_rows += len(rows)
    assert plain.coordinates is None


def test_a_resumed_store_has_the_same_coordinates(model) -> None:
    store, resumed = (_store(model, with_coordinates=True) for _ in range(2))
    for _ in range(5):
        next(store)
    resumed.load_state_dict(store.state_dict())
    for _ in range(5):
        assert torch.equal(next(store), next(resumed))
        assert torch.equal(store.coordinates, resumed.coordinates)


def test_a_store_is_made_from_settings_and_from_a_trained_sae(model) -> None:
    images = _images(8)
    sae_cfg = TopKTrainingSAEConfig(d_in=32, d_sae=64, k=4)
    config = ViTSAERunnerConfig(
        sae_cfg,
        hook_name=HOOK,
        seqpos_slice=(1, None),
        train_batch_size_tokens=34,
        store_batch_size_images=3,
        n_batches_in_buffer=4,
        seed=5,
        device="cpu",
        training_tokens=34 * 3,
        output_path=None,
        verbose=False,
    )
    expected = _store(model, images, token_kind="patches")
    from_config = ViTActivationsStore.from_config(model, config, images)
    sae = ViTSAETrainingRunner(config, images, model).run()
    settings = {"train_batch_size_tokens": 34, "store_batch_size_images": 3, "seed": 5}
    from_sae = ViTActivationsStore.from_sae(model, sae, images, n_batches_in_buffer=4, **settings)
    for _ in range(5):
        rows = next(expected)
        assert torch.equal(next(from_config), rows)
        assert torch.equal(next(from_sae), rows)
    sae.cfg.metadata.model_class_name = "HookedTransformer"
    with pytest.raises(ValueError, match="want one trained on a 'HookedViT'"):
        ViTActivationsStore.from_sae(model, sae, images)
