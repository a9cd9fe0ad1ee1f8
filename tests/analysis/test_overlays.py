"""Several latents drawn on one picture."""

import numpy as np
import pytest

from tests.analysis.test_heatmaps import grid_map
from vit_sae_plugin.analysis import outline, tint
from vit_sae_plugin.analysis.pictures.seen_region import Region


def test_colours_mix_where_latents_overlap_and_do_not_repeat():
    square = Region(0, 0, 40, 40)
    maps = [
        grid_map([[1, 0], [0, 4]], (40, 40), square),
        grid_map([[2, 1], [0, 0]], (40, 40), square),
    ]
    colours = ["#ff0000", "#0000ff"]
    pixels = np.asarray(tint(maps, smooth=False, opacity=1, colors=colours))
    grey = 128 * 0.85
    assert pixels[30, 30].tolist() == [255, 0, 0]  # only the first
    assert pixels[5, 5].tolist() == [51, 0, 204]  # 1/4 of the first and all of the second: 1 to 4
    np.testing.assert_allclose(pixels[5, 30], [grey / 2, grey / 2, (grey + 255) / 2], atol=1)
    np.testing.assert_allclose(pixels[30, 5], [grey] * 3, atol=1)
    for draw in (tint, outline):
        with pytest.raises(ValueError, match="there are 8 heat maps and 7 colours"):
            draw(maps * 4)
        with pytest.raises(ValueError, match="there are 0 heat maps"):
            draw([])
