"""The demo's latents: chosen by a rule, the good and the bad."""

from types import SimpleNamespace

import pandas as pd

from vit_sae_plugin.report.demo_latents import demo_latents, in_common


class FakeAtlas(SimpleNamespace):
    """Latents with an entropy and a leading class each; ten reference images on patches."""

    def __init__(self, entropy, leading, **columns):
        n = len(entropy)
        columns = {"frequency": [0.1] * n, "is_dense": [False] * n} | columns
        table = pd.DataFrame({"label_entropy": entropy} | columns)
        super().__init__(latents=table, leading=leading, off_patches=set())

    def reference_images(self, latent):
        n_of_class = 10 - latent % 10  # 10, 9, 8, …
        labels = [self.leading[latent]] * n_of_class + [*range(100, 110 - n_of_class)]
        row = [pd.NA if latent in self.off_patches else 0] * 10
        return pd.DataFrame({"label": labels, "row": pd.array(row, dtype="Int64")})


def test_first_middle_and_last_by_entropy():
    atlas = FakeAtlas([k / 10 for k in range(9)], leading=[0, 0, 1, 2, 3, 4, 5, 6, 6])
    chosen = demo_latents(atlas, n_of_each=2)
    assert chosen.purest == [0, 2]  # latent 1 leads with the class of latent 0
    assert chosen.middling == [4, 5] or chosen.middling == [3, 4]
    assert chosen.least_pure == [6, 8]  # and 7 with that of 8
    assert chosen.all == [*chosen.purest, *chosen.middling, *chosen.least_pure]
    assert (chosen.n_eligible, chosen.n_of_one_class, chosen.n_of_no_class) == (9, 3, 2)


def test_rare_dense_unlabelled_and_class_token_latents_take_no_part():
    atlas = FakeAtlas(
        [0.0, 0.1, None, 0.3, 0.4],
        leading=range(5),
        frequency=[0.004, 0.1, 0.1, 0.1, 0.1],
        is_dense=[False, True, False, False, False],
    )
    atlas.off_patches = {3}
    chosen = demo_latents(atlas)
    assert (chosen.all, chosen.n_eligible) == ([4], 1)
    assert demo_latents(FakeAtlas([], leading=[])).all == []


def test_what_images_have_in_common():
    assert in_common(["red ring", "blue ring", "red ring"]) == ("ring", 3)
    assert in_common(["red ring", "red ring", "blue star"]) == ("red ring", 2)
    assert in_common(["cat"]) == ("cat", 1)
