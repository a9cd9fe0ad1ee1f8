"""An exported cache, read by SAELens's stock store and trained on by its stock trainer."""

import datasets
import numpy as np
import pytest
import torch
from sae_lens import SAETrainer, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.activations_store import ActivationsStore

from tests.activations.cache.small_cache import (
    D_MODEL,
    HOOKS,
    N_TOKENS,
    all_rows,
    small_cache,
    small_model,
)
from vit_sae_plugin.activations.cache import CacheMismatchError
from vit_sae_plugin.activations.cache.sae_lens_export import export_to_sae_lens


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def cache(model, tmp_path_factory):
    return small_cache(tmp_path_factory.mktemp("cache") / "cache", model)


@pytest.fixture(scope="module")
def exported(cache, tmp_path_factory):
    return export_to_sae_lens(cache, tmp_path_factory.mktemp("exports") / "float32")


def stock_store(model, path, hook: str, **changes) -> ActivationsStore:
    settings = {
        "model": model,
        "dataset": None,
        "streaming": False,
        "hook_name": hook,
        "hook_head_index": None,
        "context_size": N_TOKENS,
        "d_in": D_MODEL,
        "n_batches_in_buffer": 2,
        "total_training_tokens": 10_000,
        "store_batch_size_prompts": 5,
        "train_batch_size_tokens": 17,
        "prepend_bos": False,
        "normalize_activations": "none",
        "device": torch.device("cpu"),
        "dtype": "float32",
        "cached_activations_path": str(path),
        "disable_concat_sequences": True,
    }
    return ActivationsStore(**{**settings, **changes})


@pytest.mark.parametrize("hook", HOOKS)
def test_saelens_reads_every_row_in_order(model, cache, exported, hook):
    store = stock_store(model, exported, hook)
    rows = torch.cat([store.get_raw_llm_batch()[0] for _ in range(2)])
    assert torch.equal(rows.view(10, N_TOKENS, D_MODEL), all_rows(cache, hook))


def test_the_folder_is_what_save_to_disk_writes(cache, exported, tmp_path):
    found = datasets.load_from_disk(str(exported))
    assert found.features == datasets.Features(
        {hook: datasets.Array2D(shape=(N_TOKENS, D_MODEL), dtype="float32") for hook in HOOKS}
    )
    found.save_to_disk(str(tmp_path / "again"), num_shards=3)
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert {path.name for path in exported.iterdir()} == names | {"vit_sae_cache.json"}


def test_saelenss_trainer_trains_on_it(model, exported):
    store = stock_store(model, exported, HOOKS[1])
    torch.manual_seed(0)
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=D_MODEL, d_sae=64, l1_coefficient=0.0))
    cfg = SAETrainerConfig(17 * 30, 17, lr=1e-2, lr_end=1e-2, device="cpu")
    data = store.get_data_loader()
    start = next(data)
    before = (sae(start) - start).square().mean()
    SAETrainer(cfg, sae, data).fit()
    assert (sae(start) - start).square().mean() < 0.5 * before


def test_half_precision_and_some_of_the_hooks(model, cache, tmp_path):
    path = export_to_sae_lens(cache, tmp_path / "half", hook_names=HOOKS[1:], dtype="float16")
    rows = stock_store(model, path, HOOKS[1], store_batch_size_prompts=10).get_raw_llm_batch()[0]
    expected = all_rows(cache, HOOKS[1]).view(-1, D_MODEL)
    assert torch.equal(rows, expected.half().float())
    assert datasets.load_from_disk(str(path)).column_names == HOOKS[1:]


def test_what_can_not_be_exported_is_refused(cache, exported, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="holds something"):
        export_to_sae_lens(cache, exported)
    with pytest.raises(ValueError, match="dtype is 'bfloat16'; want one that SAELens reads"):
        export_to_sae_lens(cache, tmp_path / "a", dtype="bfloat16")
    with pytest.raises(CacheMismatchError, match=r"hook_name is 'blocks.2.hook_resid_post'"):
        export_to_sae_lens(cache, tmp_path / "b", hook_names=["blocks.2.hook_resid_post"])
    tensor = type(cache).tensor
    monkeypatch.setattr(type(cache), "tensor", lambda *args: 1e6 * tensor(*args))
    with pytest.raises(ValueError, match=r"more than float16 holds; want dtype='float32'"):
        export_to_sae_lens(cache, tmp_path / "c", dtype="float16")
    assert not (tmp_path / "c").exists()
    assert np.isfinite(next(cache.images_in_order(HOOKS[0])).acts_btd).all()
