"""Some shots of each class, half of the classes: which images, which labels, which names."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from vit_sae_plugin.datasets import (
    ArrayImages,
    SelectedImages,
    ShapeScenes,
    few_shot,
    few_shot_splits,
    of_classes,
    open_images,
)

LABELS = [2, 0, 1, 2, 0, 1, 2, 0, 1, 2, None, 2]


def source(labels=LABELS, names=("a", "b", "c")) -> ArrayImages:
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 4, 4, 3), np.uint8
    )
    return ArrayImages(pixels, labels=labels, class_names=names)


def test_selected_images_keep_their_content_and_take_new_numbers() -> None:
    chosen = SelectedImages(source(), [7, 3, 11], classes=[2, 0])
    assert [(r.index, r.id, r.label) for r in chosen.records()] == [
        (0, "7", 1),
        (1, "3", 0),
        (2, "11", 0),
    ]
    assert [np.asarray(r.load())[0, 0, 0] for r in chosen.records()] == [7, 3, 11]
    assert chosen.class_names == ["c", "a"]
    assert chosen.labels().tolist() == [1, 0, 0]
    frame = chosen.labels_frame()
    assert frame["id"].tolist() == ["7", "3", "11"]
    assert frame["label"].tolist() == [1, 0, 0]
    assert frame["class_name"].tolist() == ["a", "c", "c"]
    prints = {chosen.fingerprint(), SelectedImages(source(), [7, 3, 11]).fingerprint()}
    assert len(prints | {source().fingerprint()}) == 3


def test_halves_of_the_classes_are_numbered_from_0() -> None:
    five = source([0, 1, 2, 3, 4, 4], names=list("abcde"))
    base, novel = of_classes(five, "base"), of_classes(five, "novel")
    assert base.class_names == ["a", "b", "c"]  # the first half is the larger one
    assert novel.class_names == ["d", "e"]
    assert novel.labels().tolist() == [0, 1, 1]
    assert of_classes(five, "all") is five


def test_shots_are_drawn_as_coop_draws_them() -> None:
    seed, images = 3, source()
    generator = random.Random(seed)
    by_first_sight = {2: [0, 3, 6, 9, 11], 0: [1, 4, 7], 1: [2, 5, 8]}
    expected = [i for some in by_first_sight.values() for i in generator.sample(some, 2)]
    train, val = few_shot_splits(images, images, n_shots=2, seed=seed)
    assert train.indices.tolist() == expected
    assert few_shot(images, 2, seed).indices.tolist() == expected
    later = [i for some in by_first_sight.values() for i in generator.sample(some, 2)]
    assert val.indices.tolist() == later
    many = source([0, 1] * 20, names=["a", "b"])
    train, val = few_shot_splits(many, many, n_shots=16)
    assert Counter(train.labels().tolist()) == {0: 16, 1: 16}
    assert Counter(val.labels().tolist()) == {0: 4, 1: 4}


def test_which_images_of_a_class_are_drawn_does_not_depend_on_the_half() -> None:
    text = "shapes:train?n_images=1500&shots=4&shots_seed=2"
    every = open_images(text)
    halves = [open_images(f"{text}&classes={half}") for half in ("base", "novel")]
    assert [half.n_images for half in halves] == [128, 128]
    ids = [record.id for half in halves for record in half.records()]
    assert sorted(ids) == sorted(record.id for record in every.records())


def test_halves_of_shape_scenes_share_all_shapes_and_colours() -> None:
    scenes = ShapeScenes(300)
    base, novel = of_classes(scenes, "base"), of_classes(scenes, "novel")
    drawn = of_classes(few_shot(scenes, 1), "base")  # the halves are still those of the scenes
    assert drawn.class_names == base.class_names
    assert base.n_images + novel.n_images == 300
    assert not set(base.class_names) & set(novel.class_names)
    for half in (base, novel):
        assert len(half.class_names) == 32
        colors, shapes = zip(*(name.split() for name in half.class_names), strict=True)
        assert (set(Counter(colors).values()), set(Counter(shapes).values())) == ({4}, {4})
        for record in list(half.records())[:5]:
            largest = scenes.scene(int(record.id[-6:])).objects[0]
            assert half.class_names[record.label] == f"{largest.color} {largest.shape}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: few_shot(source(), 4), "n_shots is 4, but class 'a' of arrays has 3 images"),
        (lambda: few_shot(source(), 0), "n_shots is 0; want 1 or more"),
        (lambda: few_shot(ArrayImages(np.zeros((2, 4, 4, 3), np.uint8)), 1), "no image of arrays"),
        (lambda: of_classes(source(), "old"), "classes is 'old'; want 'base', 'novel' or 'all'"),
        (lambda: of_classes(source(names=None), "base"), "arrays has no class names"),
        (lambda: SelectedImages(source(), [0, 12]), "indices run from 0 to 12; want 0 to 11"),
        (lambda: SelectedImages(source(), [0, 1], classes=[2]), r"classes \[0\] are chosen"),
        (lambda: open_images("shapes?classes=new"), "classes is 'new'; want 'base'"),
    ],
)
def test_what_cannot_be_chosen_is_said(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
