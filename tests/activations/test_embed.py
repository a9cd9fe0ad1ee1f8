"""Embeddings straight from a model: each row keeps its image or its caption."""

import pytest
import torch
from PIL import Image

from tests.evaluation.tiny_setup import Pictures, tiny_hooked_vit
from vit_sae_plugin.activations import embed_images, embed_texts
from vit_sae_plugin.datasets import open_images


@pytest.fixture(scope="module")
def model():
    return tiny_hooked_vit()


@pytest.mark.parametrize("batch_size_images", [1, 3, 64])
def test_images_in_their_order_are_what_the_model_says_of_them(model, batch_size_images):
    pictures = Pictures(n_images=7)
    rows = embed_images(model, pictures, batch_size_images=batch_size_images, progress=False)
    assert rows.ids == [f"picture {index}" for index in range(7)]
    with torch.no_grad():
        expected = model(pictures.batch(model))
    torch.testing.assert_close(rows.tensor(slice(None)), expected)


def test_an_image_that_cannot_be_read_takes_no_others_row(model, tmp_path):
    pictures = Pictures(n_images=3)
    for index, name in enumerate("abd"):
        Image.fromarray(pictures.pixels[index]).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"c\.png"):
        rows = embed_images(model, open_images(tmp_path), progress=False)
    assert rows.ids == ["a.png", "b.png", "d.png"]
    with torch.no_grad():
        torch.testing.assert_close(rows.tensor(slice(None)), model(pictures.batch(model)))


def test_captions_are_their_own_ids(model):
    texts = ["a red ring", "two dogs", "a red ring"]
    rows = embed_texts(model, texts, batch_size_texts=2, progress=False)
    assert rows.ids == texts
    with torch.no_grad():
        torch.testing.assert_close(rows.tensor(slice(None)), model.encode_text(texts))


def test_what_gives_no_row_for_each_is_refused(model):
    with pytest.raises(ValueError, match=r"blocks\.0\.hook_resid_post has 17 tokens for each"):
        embed_images(model, Pictures(2), hook_name="blocks.0.hook_resid_post", progress=False)
    with pytest.raises(ValueError, match="there are no captions; want one or more to embed"):
        embed_texts(model, [])
    without = tiny_hooked_vit(preprocess=None)
    with pytest.raises(ValueError, match="tiny has no preprocessing"):
        embed_images(without, Pictures(2))
