"""Shape scenes: the same everywhere, true to their labels and masks."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_sae_plugin.datasets.shape_captions import article, describe, relation, write_caption
from vit_sae_plugin.datasets.shape_drawing import (
    COLORS,
    FULL_COVERAGE,
    OUTLINE_WIDTH,
    SHAPES,
    SIZES,
    TEXTURES,
    TILTS,
    draw_background,
    outline_sprite,
    paint,
    sprite,
    texture_tile,
)
from vit_sae_plugin.datasets.shape_scenes import SCENE_CLASS_NAMES, ShapeScenes

EXPECTED_DIGESTS = {
    "train": "f2e2bbe01b5d2f7e96d1575d90f9d12e19d4cb774e07758579877a241c1b76b7",
    "test": "5644babe1782240966038fe0d066da0ccefc9c97cdc85bc2671db6ad9aa14c13",
}


def digest(source: ShapeScenes, n: int) -> str:
    """SHA-256 over pixels, masks, captions and labels of the first ``n`` scenes."""
    total = hashlib.sha256()
    for index in range(n):
        scene = source.scene(index)
        total.update(np.asarray(scene.image).tobytes())
        for thing in scene.objects:
            total.update(thing.mask.tobytes())
        total.update(f"{scene.caption}|{scene.label}".encode())
    return total.hexdigest()


def pixels(scene) -> np.ndarray:
    return np.asarray(scene.image).astype(int)


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_are_the_same_on_every_machine(split):
    # A change here changes every figure measured on scenes: raise GENERATOR_VERSION with it.
    assert digest(ShapeScenes(64, seed=7, split=split), 64) == EXPECTED_DIGESTS[split]


def test_a_scene_depends_on_seed_split_and_index_only():
    few, many = ShapeScenes(3), ShapeScenes(10_000)
    many.scene(9_999)
    assert np.array_equal(pixels(few.scene(2)), pixels(many.scene(2)))
    assert few.scene(2).caption == many.scene(2).caption
    other_seed = ShapeScenes(3, seed=1).scene(2)
    assert not np.array_equal(pixels(few.scene(2)), pixels(other_seed))


def test_train_and_test_share_no_scene():
    def pictures(split: str) -> set[bytes]:
        source = ShapeScenes(400, n_objects=1, split=split)
        return {source.scene(index).image.tobytes() for index in range(400)}

    train, test = pictures("train"), pictures("test")
    assert len(train) == len(test) == 400
    assert train.isdisjoint(test)


@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 10**9 - 1), seed=st.integers(0, 2**63), n_objects=st.integers(1, 3))
def test_every_scene_is_what_it_says(index, seed, n_objects):
    scene = ShapeScenes(10**9, n_objects=n_objects, seed=seed).scene(index)
    assert scene.image.size == (64, 64)
    assert scene.image.mode == "RGB"
    assert len(scene.objects) == n_objects
    names = [f"{thing.color} {thing.shape}" for thing in scene.objects]
    assert len(set(names)) == n_objects
    assert SCENE_CLASS_NAMES[scene.label] == names[0]
    assert all(name in scene.caption for name in names)
    masks = np.stack([thing.mask for thing in scene.objects])
    assert masks.sum(axis=0).max() == 1  # a pixel belongs to one object at most
    order = list(SIZES)
    sizes = [order.index(thing.size) for thing in scene.objects]
    assert sizes[0] == max(sizes)
    for thing in scene.objects:
        column, row = thing.centre
        rows, columns = np.nonzero(thing.mask)
        reach = 1.24 * SIZES[thing.size][1] / 2 + 1  # 1.23 radii: the triangle's corners
        assert max(abs(rows - row).max(), abs(columns - column).max()) <= reach
        # Objects barely overlap: most of the smallest sprite of this kind is in sight.
        smallest = SIZES[thing.size][0] - 1
        areas = [
            (2 * sprite(thing.shape, smallest, tilt)[:, ::3] >= FULL_COVERAGE).sum()
            for tilt in range(len(TILTS))
        ]
        assert thing.mask.sum() >= 0.85 * min(areas)


def test_masks_lie_on_their_objects():
    """Inside a plain object's mask the pixels have its colour; outside all masks, nobody's."""
    source = ShapeScenes(200)
    for index in range(200):
        scene = source.scene(index)
        image = pixels(scene)
        free = ~np.any([thing.mask for thing in scene.objects], axis=0)
        for thing in scene.objects:
            base = np.array(COLORS[thing.color][0])
            # Middle pixels only: outlines blend into what lies behind them.
            shifts = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
            inner = np.all([np.roll(thing.mask, shift, (0, 1)) for shift in shifts], axis=0)
            if thing.texture == "plain":
                assert np.abs(image[inner] - base).max() <= 8 + 4
            near_base = (np.abs(image - base) <= 12).all(axis=-1)
            others_alike = any(t.color == thing.color for t in scene.objects if t is not thing)
            if not others_alike:
                assert near_base[free].mean() < 0.01


def test_coverage_of_patches_is_the_mean_of_the_mask():
    scene = ShapeScenes(1, n_objects=2).scene(0)
    coverage = scene.patch_coverage(8)
    assert coverage.shape == (2, 8, 8)
    assert coverage[1, 3, 5] == scene.objects[1].mask[24:32, 40:48].mean()
    assert coverage.sum() * 64 == sum(thing.mask.sum() for thing in scene.objects)


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi * 0.92**2),
        ("square", 1.56**2),
        ("triangle", 1.72 * 1.72 * 0.58),
        ("cross", 2 * 1.88 * 0.62 - 0.62**2),
        ("ring", np.pi * (0.95**2 - 0.52**2)),
    ],
)
@pytest.mark.parametrize("tilt", range(len(TILTS)))
def test_a_sprite_has_the_area_of_its_shape(shape, area, tilt):
    coverage = sprite(shape, 30, tilt)[:, ::3]
    assert coverage.max() == FULL_COVERAGE
    assert coverage.sum() / FULL_COVERAGE / 15**2 == pytest.approx(area, rel=0.01)


def test_all_sprites_differ():
    drawn = {sprite(shape, 24, 4).tobytes() for shape in SHAPES}
    assert len(drawn) == len(SHAPES) == 8


@pytest.mark.parametrize(
    ("texture", "share"),
    [("plain", 0.0), ("striped", 0.5), ("checked", 0.5), ("dotted", 7 / 16 * np.pi / 4)],
)
@pytest.mark.parametrize("variant", range(4))
def test_a_texture_takes_its_share_of_the_accent(texture, share, variant):
    tile = texture_tile(texture, variant)
    assert tile.mean() / FULL_COVERAGE == pytest.approx(share, abs=0.04)


def test_paint_blends_by_coverage_and_stops_at_the_edge():
    canvas = draw_background((100, 100, 100), (100, 100, 100), 0)
    coverage = np.repeat(np.array([[16, 8], [0, 4]], dtype=np.int16), 3, axis=1)
    base, accent = np.array([[20, 180, 100], [0, 0, 0]], dtype=np.int16)
    mask = paint(canvas, coverage, 62, 63, base, accent, np.zeros((2, 6), dtype=np.int16))
    assert canvas[63, -6:].tolist() == [20, 180, 100, 60, 140, 100]
    assert (canvas[:63] == 100).all()
    assert np.argwhere(mask).tolist() == [[63, 62], [63, 63]]


def test_a_graded_background_runs_from_one_colour_to_the_other():
    canvas = draw_background((0, 40, 100), (126, 40, 37), 0).reshape(64, 64, 3)
    assert canvas[0, 0].tolist() == [0, 40, 100]
    assert canvas[5, 63].tolist() == [124, 40, 37]  # 126 · 252 >> 8, and −63 · 252 >> 8 = −63
    assert (canvas[0] == canvas[63]).all()


def thing(color, shape, centre=(10, 10), size="large", texture="plain"):
    return SimpleNamespace(color=color, shape=shape, centre=centre, size=size, texture=texture)


def test_captions_by_hand():
    star, ring = thing("orange", "star", (10, 12)), thing("blue", "ring", (40, 20))
    assert article("orange star") == "an orange star"
    assert describe(star, with_size=True, with_texture=True) == "large plain orange star"
    assert relation(star, ring) == "left of"
    assert relation(ring, star) == "right of"
    assert relation(star, thing("red", "cross", (11, 2))) == "below"
    always_first = write_caption([star, ring], "dark", lambda n: 0)
    assert always_first == (
        "a large plain orange star left of a large plain blue ring on a dark background"
    )
    always_last = write_caption([star, ring], "dark", lambda n: n - 1)
    assert always_last == "an image of an orange star and a blue ring"


def test_classes_and_attributes_are_evenly_spread():
    source = ShapeScenes(3200)
    labels = Counter(source.record(index).label for index in range(3200))
    assert len(labels) == 64
    assert 20 <= min(labels.values()) <= max(labels.values()) <= 85
    scenes = [source.scene(index) for index in range(600)]
    counts = Counter(len(scene.objects) for scene in scenes)
    assert all(150 <= counts[n] <= 250 for n in (1, 2, 3))
    textures = Counter(thing.texture for scene in scenes for thing in scene.objects)
    assert all(240 <= textures[texture] <= 360 for texture in TEXTURES)


def test_records_are_the_scenes():
    source = ShapeScenes(20, split="test", seed=3)
    records = list(source.records(start=5))
    assert [record.index for record in records] == list(range(5, 20))
    assert len({record.id for record in records}) == 15
    sent = pickle.loads(pickle.dumps(records[2]))
    scene = source.scene(7)
    assert sent.label == scene.label
    assert np.array_equal(np.asarray(sent.load()), np.asarray(scene.image))


def test_the_fingerprint_tells_sources_apart():
    sources = [
        ShapeScenes(20),
        ShapeScenes(21),
        ShapeScenes(20, seed=1),
        ShapeScenes(20, split="test"),
        ShapeScenes(20, n_objects=1),
        ShapeScenes(20, n_objects=(1, 2)),
        ShapeScenes(20, style="outline"),
        ShapeScenes(20, bias=0.9),
    ]
    assert len({source.fingerprint() for source in sources}) == len(sources)
    assert ShapeScenes(20).fingerprint() == ShapeScenes(20, n_objects=(1, 3)).fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_objects": 0}, "n_objects is 0; want"),
        ({"n_objects": (2, 4)}, r"n_objects is \(2, 4\)"),
        ({"n_objects": (3, 1)}, r"n_objects is \(3, 1\)"),
        ({"split": "val"}, "split is 'val'; want one of train, test"),
        ({"n_images": 0}, "n_images is 0; want 1 or more"),
        ({"seed": -1}, "seed is -1; want 0 or more"),
        ({"style": "sketch"}, "style is 'sketch'; want one of filled, outline"),
        ({"bias": 1.5}, "bias is 1.5; want a probability"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShapeScenes(**{"n_images": 5, **arguments})


def test_an_index_past_the_end_is_refused():
    source = ShapeScenes(5)
    with pytest.raises(IndexError, match="index is 5; want 0 to 4, those of shapes:train"):
        source.scene(5)
    with pytest.raises(IndexError, match="index is -1; want"):
        source.record(-1)


def test_outline_drawings_are_the_same_scenes_with_empty_objects() -> None:
    filled = ShapeScenes(40, seed=2)
    drawn = ShapeScenes(40, seed=2, style="outline")
    for index in range(40):
        one, other = filled.scene(index), drawn.scene(index)
        assert (one.label, len(one.objects)) == (other.label, len(other.objects))
        for thing, line in zip(one.objects, other.objects, strict=True):
            assert np.array_equal(thing.mask, line.mask)
            assert line.texture == "plain"
        outside = ~np.any([thing.mask for thing in one.objects], axis=0)
        far = outside & ~_grown(~outside, 3)  # tips that cover less than half a pixel
        assert np.array_equal(np.asarray(one.image)[far], np.asarray(other.image)[far])
    assert drawn.name == "shapes:train-outline"


def _grown(mask, n_pixels):
    padded = np.pad(mask, n_pixels)
    rows, columns = mask.shape
    steps = range(2 * n_pixels + 1)
    shifted = [padded[dy : dy + rows, dx : dx + columns] for dy in steps for dx in steps]
    return np.any(shifted, axis=0)


def test_an_outline_is_as_wide_as_it_says() -> None:
    filled, line = sprite("square", 32, 3), outline_sprite("square", 32, 3)
    middle = filled.shape[0] // 2
    across = line[middle, ::3]
    assert across[middle] == 0
    edge = across[:middle]
    assert OUTLINE_WIDTH <= edge.sum() / FULL_COVERAGE <= OUTLINE_WIDTH + 1
    assert ((line >= 0) & (line <= filled)).all()


def test_a_planted_bias_ties_colour_to_shape_in_training_only() -> None:
    train = ShapeScenes(2000, 1, bias=0.9)
    frame = train.labels_frame()
    assert frame["aligned"].mean() == pytest.approx(0.9, abs=0.03)
    assert (frame["class_name"] == frame["shape"]).all()
    names = [SCENE_CLASS_NAMES[group] for group in frame["group"]]
    assert names == (frame["color"] + " " + frame["shape"]).tolist()
    others = frame[~frame["aligned"]]
    assert others.groupby("shape")["color"].nunique().tolist() == [7] * 8
    for index in range(20):
        scene = train.scene(index)
        largest = scene.objects[0]
        assert (largest.color, largest.shape) == tuple(frame.loc[index, ["color", "shape"]])
        assert scene.label == train.record(index).label == SHAPES.index(largest.shape)
    test = ShapeScenes(2000, 1, bias=0.9, split="test").labels_frame()
    assert test["aligned"].mean() == pytest.approx(1 / 8, abs=0.03)
    assert set(ShapeScenes(5, bias=1.0).labels_frame()["aligned"]) == {True}
