"""Activations find their place on the picture: grids, crops, upsampling, drawing."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import ExifTags, Image
from torchvision import transforms

from tests.analysis.tiny_pipeline import (
    HOOK,
    NoisePictures,
    make_model,
    make_sae,
    make_wide_model,
    preprocess_to,
)
from vit_sae_plugin.analysis.pictures.heatmap import Heatmap, highlight
from vit_sae_plugin.analysis.pictures.heatmaps import heatmap, segmentation_mask
from vit_sae_plugin.analysis.pictures.overlays import outline, tint, zoom
from vit_sae_plugin.analysis.pictures.seen_region import Region, seen_region
from vit_sae_plugin.datasets import UnreadableImageError


@pytest.mark.parametrize(
    ("size", "transform", "expected"),
    [
        ((100, 100), preprocess_to(32), (0, 0, 100, 100)),
        ((300, 100), preprocess_to(32), (100, 0, 200, 100)),
        ((100, 240), preprocess_to(32), (0, 70, 100, 170)),
        ((200, 100), preprocess_to(16, 32), (0, 0, 200, 100)),
        # squashed: everything is seen
        (
            (300, 100),
            transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()]),
            (0, 0, 300, 100),
        ),
        # resized to 40, then the central 32
        (
            (80, 80),
            transforms.Compose(
                [transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor()]
            ),
            (8, 8, 72, 72),
        ),
        ((1, 50), preprocess_to(32), (0, 24.5, 1, 25.5)),
    ],
)
def test_the_seen_region_is_found(size, transform, expected):
    region = seen_region(transform, size)
    found = (region.left, region.top, region.right, region.bottom)
    slack = [0.02 * size[0], 0.02 * size[1]] * 2
    assert np.all(np.abs(np.subtract(found, expected)) <= slack), found


def grid_map(patches, image_size, region):
    return Heatmap(Image.new("RGB", image_size, "gray"), 0, np.array(patches, float), region)


def test_blocks_and_crop_worked_by_hand():
    # a 2 x 3 grid over the middle six columns of a picture of 8 x 4 pixels
    one = grid_map([[1, 2, 3], [4, 5, 6]], (8, 4), Region(1, 0, 7, 4))
    nan = np.nan
    top, bottom = [nan, 1, 1, 2, 2, 3, 3, nan], [nan, 4, 4, 5, 5, 6, 6, nan]
    np.testing.assert_array_equal(one.on_image(smooth=False), [top, top, bottom, bottom])
    assert one.peak == (1, 2)


def test_smooth_upsampling_is_linear_between_patch_centres():
    one = grid_map([[0, 4]], (8, 2), Region(0, 0, 8, 2))
    # centres of the patches at 2 and 6; pixel centres at 0.5, 1.5, …
    np.testing.assert_allclose(one.on_image()[0], [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4])
    np.testing.assert_allclose(one.on_region((4, 2))[0], [0, 1, 3, 4])


def test_a_latent_lights_up_where_its_direction_is():
    """An SAE that reads one known direction, put into known patches by hand."""
    model = make_wide_model()
    sae = make_sae(model, d_sae=2)
    picture = NoisePictures(1, size=(64, 32)).picture(0)
    pixels = model.preprocess(picture)[None]
    _, cache = model.run_with_cache(pixels, names_filter=HOOK)
    patches = cache[HOOK][0, 1:]
    assert patches.shape[0] == 8
    direction = patches[6]  # row 1, column 2 of 2 x 4
    sae.W_enc.data = torch.stack([direction / direction.norm() ** 2, -direction], dim=1)
    sae.b_enc.data = torch.tensor([0.0, -1e6])
    sae.b_dec.data.zero_()
    one = heatmap(model, sae, picture, 0)
    expected = (patches @ direction / direction.norm() ** 2).relu().view(2, 4)
    np.testing.assert_allclose(one.patches, expected.detach(), rtol=1e-4, atol=1e-5)
    assert one.patches[1, 2] == pytest.approx(1, rel=1e-4)
    mask = segmentation_mask(model, sae, picture, 0)
    assert mask.shape == (32, 64)
    np.testing.assert_allclose(mask[16:, 32:48], one.patches[1, 2])
    exactly_there = segmentation_mask(
        model, sae, picture, 0, threshold=float(one.patches.max()) - 1e-6
    )
    assert exactly_there.dtype == bool
    assert exactly_there.sum() == 16 * 16
    assert not segmentation_mask(model, sae, picture, 1).any()


def test_several_latents_at_once_and_wrong_ones():
    model = make_model()
    sae = make_sae(model)
    picture = NoisePictures(1).picture(0)
    maps = heatmap(model, sae, picture, [3, 7])
    assert [m.latent for m in maps] == [3, 7]
    np.testing.assert_array_equal(maps[0].patches, heatmap(model, sae, picture, 3).patches)
    assert maps[1].peak is None  # latent 7 is dead
    with pytest.raises(ValueError, match="there is no latent 40; want 0 to 39"):
        heatmap(model, sae, picture, 40)
    with pytest.raises(ValueError, match="none of which is a patch"):
        heatmap(model, make_sae(model, token_kind="cls"), picture, 0)


@pytest.mark.parametrize(
    "latent", [np.int64(3), pd.Series([0.1, 0.9], index=[5, 3]).idxmax(), torch.tensor(3)]
)
def test_an_index_may_come_from_a_table(latent):
    model = make_model()
    sae, picture = make_sae(model), NoisePictures(1).picture(0)
    one = heatmap(model, sae, picture, latent)
    assert (type(one.latent), one.latent) == (int, 3)
    np.testing.assert_array_equal(one.patches, heatmap(model, sae, picture, 3).patches)
    assert segmentation_mask(model, sae, picture, latent).max() == one.patches.max()
    from_index = heatmap(model, sae, picture, pd.Index([3, 7]))
    assert [type(m.latent) for m in from_index] == [int, int]


def test_pictures_are_read_as_the_loader_reads_them(tmp_path):
    """Upright as EXIF says and transparency on white, from a picture, a path or an array."""
    model = make_model()
    sae, picture = make_sae(model), NoisePictures(1).picture(0)
    wanted = heatmap(model, sae, picture, 2)
    lying = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turn by 270 degrees to see it upright
    lying.save(tmp_path / "turned.png", exif=exif)
    for turned in (tmp_path / "turned.png", str(tmp_path / "turned.png"), np.asarray(picture)):
        found = heatmap(model, sae, turned, 2)
        assert found.image.size == picture.size == (40, 36)
        np.testing.assert_array_equal(found.patches, wanted.patches)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(heatmap(model, sae, opened, 2).patches, wanted.patches)

    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    white = heatmap(model, sae, Image.new("RGB", (32, 32), "white"), [0, 1, 2])
    for found, expected in zip(heatmap(model, sae, clear, [0, 1, 2]), white, strict=True):
        np.testing.assert_array_equal(found.patches, expected.patches)
    with pytest.raises(UnreadableImageError, match="no such file"):
        heatmap(model, sae, tmp_path / "none.png", 2)


def test_a_smooth_mask_runs_between_patch_centres():
    model = make_model()
    sae, picture = make_sae(model), NoisePictures(1, size=(32, 32)).picture(0)
    one = heatmap(model, sae, picture, 2)
    smooth = segmentation_mask(model, sae, picture, 2, smooth=True)
    # pixels 3 and 4 lie an eighth, 11 and 12 seven eighths of a patch around the centres 4 and 12
    along = one.patches[0, 0] + (one.patches[0, 1] - one.patches[0, 0]) * np.array([1, 15]) / 16
    np.testing.assert_allclose(smooth[0, [4, 11]], along, rtol=1e-5)
    assert len(np.unique(segmentation_mask(model, sae, picture, 2))) <= 16 < len(np.unique(smooth))


def test_patches_outside_the_selection_are_missing():
    model = make_model()
    sae = make_sae(model, token_kind="patches")
    whole = make_sae(model)
    picture = NoisePictures(1).picture(0)
    np.testing.assert_allclose(
        heatmap(model, sae, picture, 2).patches, heatmap(model, whole, picture, 2).patches
    )


def test_drawing_marks_the_active_patch_only():
    one = grid_map([[0, 0], [0, 2]], (40, 40), Region(0, 0, 40, 40))
    pixels = np.asarray(highlight(one, dim=0.25), float)
    assert np.all(pixels[20:, 20:] == 128)
    assert np.all(pixels[:20] == 32)
    other = grid_map([[1, 0], [0, 0]], (40, 40), Region(0, 0, 40, 40))
    two = np.asarray(tint([one, other], smooth=False, opacity=1), float)
    assert tuple(two[30, 30]) == (0xE6, 0x9F, 0x00)
    assert tuple(two[5, 5]) == (0x56, 0xB4, 0xE9)
    assert len({tuple(p) for p in two[25:, :15].reshape(-1, 3)}) == 1
    line = np.asarray(outline(one, smooth=False, line_width=1), float)
    assert tuple(line[20, 25]) == (0xE6, 0x9F, 0x00)
    assert tuple(line[30, 30]) == tuple(line[5, 5]) == (128, 128, 128)


def test_drawing_at_a_size_shows_what_the_model_sees():
    picture = Image.new("RGB", (80, 40), "black")
    picture.paste((200, 200, 200), (20, 0, 60, 40))
    one = Heatmap(picture, 0, np.array([[1.0, 0.0], [0.0, 0.0]]), Region(20, 0, 60, 40))
    shown = np.asarray(highlight(one, size=(40, 40), dim=0.5), float)
    assert shown.shape == (40, 40, 3)
    assert np.all(shown[:20, :20] == 200)
    assert np.all(shown[20:] == 100)
    coloured = np.asarray(tint(one, size=(40, 40), smooth=False, opacity=1), float)
    assert np.all(coloured[:20, :20] == (0xE6, 0x9F, 0x00))


def test_drawing_a_silent_latent_and_zooming_at_the_border():
    silent = grid_map([[0, 0], [0, 0]], (40, 40), Region(0, 0, 40, 40))
    assert np.asarray(highlight(silent)).max() == 51  # 0.4 of grey 128
    assert zoom(silent, size=30).size == (30, 30)
    picture = NoisePictures(1, size=(80, 40)).picture(0)
    corner = Heatmap(picture, 0, np.array([[0, 0, 0, 9.0], [0, 0, 0, 0]]), Region(0, 0, 80, 40))
    near = zoom(corner, n_patches=1, size=20)
    np.testing.assert_array_equal(np.asarray(near), np.asarray(picture)[:20, 60:])
    assert highlight(corner, size=(16, 8)).size == (16, 8)
