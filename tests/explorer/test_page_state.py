"""What a visitor has chosen, as a link and back."""

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_sae_plugin.explorer.page_state import (
    Limits,
    PageState,
    classes_as_text,
    parse_classes,
)

LIMITS = Limits(n_images=30, d_sae=64, grid=(8, 6), n_shown=7)

latents = st.integers(0, 63)
names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
states = st.builds(
    PageState,
    image=st.none() | st.integers(0, 29),
    classes=st.none()
    | st.lists(names, min_size=1, max_size=4)
    .map("\n".join)
    .filter(lambda text: text.replace(",", "").strip()),
    template=st.none() | st.just("a photo of a {}, drawn & lit?"),
    ranking=st.sampled_from(["strength", "answer"]),
    patch=st.none() | st.tuples(st.integers(0, 7), st.integers(0, 5)),
    shown=st.lists(latents, max_size=7, unique=True).map(tuple),
    factors=st.dictionaries(latents, st.sampled_from([0.0, 0.25, 1.75, 4.0]), max_size=5),
    added=st.dictionaries(latents, st.sampled_from([0.25, 1.0, 4.0]), max_size=5),
    opened=st.none() | latents,
)


def read(query: str) -> tuple[PageState, list[str]]:
    return PageState.from_query(dict(parse_qsl(query)), LIMITS)


@given(states)
def test_a_link_brings_back_what_was_chosen(state):
    assert read(state.to_query()) == (state, [])


def test_the_state_that_a_page_begins_with_needs_no_link():
    assert PageState().to_query() == ""
    assert read("") == (PageState(), [])


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("image=30", "the image is 30; want 0 to 29"),
        ("image=-1", "0 to 29"),
        ("image=/etc/passwd", "0 to 29"),
        ("image=²", "0 to 29"),
        ("latent=64", "the latent is 64; want 0 to 63"),
        ("patch=8-0", "the row is 8; want 0 to 7"),
        ("patch=3", "the column is ''; want 0 to 5"),
        ("show=1,2,x", "0 to 63"),
        ("show=0,1,2,3,4,5,6,7", "8 latents are to be shown; want at most 7"),
        ("change=3x4.5", "the factor is '4.5'; want 0 to 4"),
        ("change=3xnan", "want 0 to 4"),
        ("add=3x-1", "the factor is '-1'; want 0 to 4"),
        ("change=3", "want 0 to 4"),
        ("change=" + ",".join(["1x0"] * 65), "65 latents are changed; want at most 64"),
        ("rank=best", "strength or answer"),
        ("classes=,", "has no name; want one or more"),
        ("classes=" + "a" * 201, "a class name has 201 letters; want at most 200"),
        ("classes=" + ",".join(f"c{i}" for i in range(1001)), "has 1001 names; want at most 1000"),
        ("template=" + "a" * 201, "the template has 201 letters; want at most 200"),
    ],
)
def test_what_is_wrong_in_a_link_is_left_out_and_said(query, wanted):
    state, problems = read(query + "&image=3" if "image" not in query else query + "&show=1")
    assert len(problems) == 1
    assert problems[0].startswith("in the link, ")
    assert wanted in problems[0]
    assert len(problems[0]) < 150
    assert state == (PageState(image=3) if "image" not in query else PageState(shown=(1,)))


def test_a_link_can_name_no_patch_where_there_are_none():
    state, problems = PageState.from_query({"patch": "0-0"}, Limits(30, 64, None, 7))
    assert state.patch is None
    assert "reads no patches" in problems[0]


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("red star, blue ring", ("red star", "blue ring")),
        ("  cat ,, dog,cat , ", ("cat", "dog")),
        ("tabby, tabby cat\ncrane", ("tabby, tabby cat", "crane")),
        ("tabby, tabby cat\n", ("tabby, tabby cat",)),
        ("cat", ("cat",)),
    ],
)
def test_class_lists_by_hand(typed, names):
    assert parse_classes(typed) == names
    assert parse_classes(classes_as_text(names)) == names
