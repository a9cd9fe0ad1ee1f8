"""Latents on disk: what was written comes back, in the images' order, whole or not at all."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from tests.evaluation.tiny_setup import Pictures, tiny_hooked_vit, tiny_sae
from vit_sae_plugin.activations.embedding_rows import EmbeddingRows
from vit_sae_plugin.evaluation import load_latents, save_embedding_latents, save_latents
from vit_sae_plugin.evaluation.latent_files import LatentWriter

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return tiny_hooked_vit()


@pytest.mark.parametrize("token_kind", ["all", "patches", "cls"])
def test_latents_come_back_in_the_order_of_the_images(model, tmp_path, token_kind):
    sae, pictures = tiny_sae(model, HOOK, token_kind), Pictures(n_images=7)
    save_latents(model, sae, pictures, tmp_path / "latents", batch_size_images=3)
    saved = load_latents(tmp_path / "latents")

    _, cache = model.run_with_cache(pictures.batch(model), names_filter=HOOK)
    chosen = {"all": range(17), "patches": range(1, 17), "cls": range(1)}[token_kind]
    with torch.no_grad():
        expected = sae.encode(cache[HOOK][:, list(chosen)])
    torch.testing.assert_close(saved.to_dense(), expected.flatten(0, 1))
    torch.testing.assert_close(saved.to_dense(2, 5), expected.flatten(0, 1)[2:5])
    assert saved.token_position.tolist() == [*chosen] * 7
    assert saved.image_index.tolist() == [image for image in range(7) for _ in chosen]
    assert saved.images["id"].to_list() == [f"picture {index}" for index in range(7)]
    assert saved.images["label"].to_list() == [0, 1, 2, 0, 1, 2, 0]
    assert saved.row_ids[-1] == "picture 6"
    header = json.loads((tmp_path / "latents" / "latents.json").read_text())
    assert header["n_values"] == int((expected != 0).sum())
    assert header["source"]["hook_name"] == HOOK


def test_pooled_embeddings_and_half_precision(model, tmp_path):
    sae = tiny_sae(model, "hook_image_embed")
    save_latents(model, sae, Pictures(5), tmp_path / "pooled", dtype=torch.float16, n_images=4)
    saved = load_latents(tmp_path / "pooled")
    assert len(saved) == 4
    assert saved.values.dtype == torch.float16
    assert saved.token_position.tolist() == [0] * 4


def test_rows_of_embeddings_keep_their_ids(model, tmp_path):
    sae = tiny_sae(model, "hook_image_embed")
    rows = np.random.default_rng(0).normal(size=(6, sae.cfg.d_in)).astype(np.float32)
    embeddings = EmbeddingRows(rows, ids=[f"photo-{name}.jpg" for name in "fedcba"])
    save_embedding_latents(sae, embeddings, tmp_path / "rows")
    saved = load_latents(tmp_path / "rows")
    assert saved.row_ids == embeddings.ids
    torch.testing.assert_close(saved.to_dense(), sae.encode(torch.from_numpy(rows)).detach())


def test_shards_can_be_read_one_by_one(tmp_path):
    latents = torch.eye(6)[:, None]
    with LatentWriter(tmp_path / "many", 6, {}, max_shard_values=2) as writer:
        for image in range(6):
            part = latents[image : image + 1]
            writer.add(part, [image], [str(image)], [-1], torch.tensor([0]))
    whole = load_latents(tmp_path / "many")
    assert torch.equal(whole.to_dense(), torch.eye(6))
    shards = [load_latents(tmp_path / "many", shard=number) for number in range(3)]
    assert torch.equal(torch.cat([part.to_dense() for part in shards]), torch.eye(6))
    assert [part.row_ids for part in shards] == [["0", "1"], ["2", "3"], ["4", "5"]]
    with pytest.raises(IndexError, match=r"shard is 3; want 0 to 2"):
        load_latents(tmp_path / "many", shard=3)


def test_an_error_leaves_nothing_behind(tmp_path):
    def interrupted():
        with LatentWriter(tmp_path / "broken", 4, {}) as writer:
            writer.add(torch.ones(1, 1, 4), [0], ["a"], [0], torch.tensor([0]))
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_saved_latents_is_ever_replaced(model, tmp_path):
    sae, place = tiny_sae(model), tmp_path / "latents"
    save_latents(model, sae, Pictures(3), place)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_latents(model, sae, Pictures(3), place)
    save_latents(model, sae, Pictures(4), place, overwrite=True)
    assert len(load_latents(place).images) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileExistsError, match="nothing else is ever replaced"):
        save_latents(model, sae, Pictures(3), tmp_path / "photos", overwrite=True)


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no latents\.json"):
        load_latents(tmp_path)
    (tmp_path / "latents.json").write_text(json.dumps({"format_version": 2}))
    with pytest.raises(ValueError, match="format version 2; want 1"):
        load_latents(tmp_path)


def test_images_table_is_plain_parquet(model, tmp_path):
    save_latents(model, tiny_sae(model), Pictures(3, labelled=False), tmp_path / "latents")
    table = pd.read_parquet(tmp_path / "latents" / "images.parquet")
    assert table.columns.to_list() == ["image_index", "id", "label"]
    assert table["label"].to_list() == [-1, -1, -1]
