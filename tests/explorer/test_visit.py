"""One visitor's work, without a browser."""

import base64
import builtins
import io
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from tests.explorer.conftest import Counter, shapes_sae
from vit_sae_plugin.analysis import analyze, heatmap
from vit_sae_plugin.attached_sae import attribute, remove, scale
from vit_sae_plugin.attached_sae.interventions import in_order
from vit_sae_plugin.datasets import ImageSource, ShapeScenes
from vit_sae_plugin.explorer import Explorer, Visit, open_explorer
from vit_sae_plugin.explorer.actions import PARTS, act
from vit_sae_plugin.explorer.explorer import KeptImages
from vit_sae_plugin.explorer.page_state import PageState
from vit_sae_plugin.explorer.views import answer_view
from vit_sae_plugin.explorer.visit import MAX_UPLOAD_BYTES, Visits
from vit_sae_plugin.prompt_templates import shape_scene_templates

FEW = "red star, blue ring, green heart"


def encoded(picture: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def probabilities(model, embeds, names, templates):
    classifier = model.zero_shot_classifier(names, templates)
    logits = torch.nn.functional.normalize(embeds, dim=-1) @ classifier * model.logit_scale
    return dict(zip(names, logits.softmax(-1)[0].tolist(), strict=True))


def test_the_answer_is_the_models_own_and_moves_as_a_splice_does(shapes_explorer, clip):
    visit = Visit(shapes_explorer, {"image": "4", "classes": FEW})
    names = FEW.split(", ")
    pixels = clip.preprocess(shapes_explorer.images.record(4).load())[None]
    with torch.no_grad():
        plain = probabilities(clip, clip(pixels), names, shape_scene_templates())
    (found,) = visit.predictions().values()
    assert {one.name: one.before for one in found.answers} == pytest.approx(plain, rel=1e-4)
    assert {one.name: one.after for one in found.answers} == pytest.approx(plain, rel=1e-4)
    assert found.before == found.after == max(plain, key=plain.get)

    first, second = [one.latent for one in visit.listed()[:2]]
    visit.set_factor(first, 0)
    visit.set_factor(second, 2.5)
    edit = in_order(remove([first]), scale([second], 2.5))
    with torch.no_grad():
        spliced = shapes_explorer.attached.splice(pixels, edit, use_error_term=True)
    changed = probabilities(clip, spliced, names, shape_scene_templates())
    (found,) = visit.predictions().values()
    assert {one.name: one.after for one in found.answers} == pytest.approx(changed, rel=1e-4)
    assert {one.name: one.before for one in found.answers} == pytest.approx(plain, rel=1e-4)
    assert changed != pytest.approx(plain, rel=1e-3)
    expected = torch.nn.functional.cosine_similarity(clip(pixels), spliced).item()
    assert visit.likeness()["plain"] == pytest.approx(expected, rel=1e-5)

    visit.undo_changes()
    (found,) = visit.predictions().values()
    assert {one.name: one.after for one in found.answers} == pytest.approx(plain, rel=1e-4)


def test_the_layers_below_the_sae_run_once_for_each_image(clip):
    model = type(clip).from_pretrained("shapes-clip")
    explorer = open_explorer(model, shapes_sae(model), ShapeScenes(6, split="test"), progress=False)
    explorer.attached.layout  # noqa: B018 (asks the model once, for all images)
    explorer.classifiers["plain"].get(tuple(FEW.split(", ")), "{}")
    counter = Counter(model)
    visit = Visit(explorer, {"image": "2", "classes": FEW, "template": "{}"})
    assert counter.counts[:3] == [1, 1, 1]
    latent = visit.listed()[0].latent
    for said in (
        {"kind": "color", "latent": latent},
        {"kind": "factor", "latent": latent, "factor": 0},
        {"kind": "factor", "latent": latent, "factor": 3.0},
        {"kind": "patch", "row": 1, "column": 2},
        {"kind": "rank", "ranking": "answer"},
        {"kind": "step", "rows": 1, "columns": 0},
        {"kind": "ask", "classes": FEW, "template": "{}"},
    ):
        assert act(visit, said)
        assert not visit.notices
        visit.pictures(), visit.predictions(), visit.listed(), visit.likeness()
    assert counter.counts[:3] == [1, 1, 1]
    assert min(counter.counts[3:]) > 5
    visit.open_image(3)
    assert counter.counts[:3] == [2, 2, 2]


def test_latents_of_the_picture_and_of_a_patch_are_the_saes(shapes_explorer, clip):
    visit = Visit(shapes_explorer, {"image": "7"})
    pixels = clip.preprocess(shapes_explorer.images.record(7).load())[None]
    with torch.no_grad():
        latents = shapes_explorer.attached.latents(pixels)[0]
    strongest = latents.max(0).values
    assert [one.latent for one in visit.listed()] == strongest.topk(12).indices.tolist()
    assert [one.values[0] for one in visit.listed()] == pytest.approx(
        strongest.topk(12).values.tolist(), rel=1e-5
    )
    visit.choose_patch(3, 5)
    here = latents[1 + 3 * 8 + 5]
    listed = visit.listed()
    n = min(12, int((here > 0).sum()))
    assert [one.latent for one in listed] == here.topk(n).indices.tolist()
    assert [one.values[0] for one in listed] == pytest.approx(
        here.topk(n).values.tolist(), rel=1e-5
    )
    visit.choose_patch(3, 5)
    assert visit.state.patch is None


def test_latents_that_move_the_answer_are_ranked_by_their_part_in_its_lead(shapes_explorer, clip):
    visit = Visit(shapes_explorer, {"image": "4", "classes": FEW, "rank": "answer"})
    names = FEW.split(", ")
    classifier = clip.zero_shot_classifier(names, shape_scene_templates())

    def logits(embeds):
        unit = torch.nn.functional.normalize(embeds, dim=-1)
        return unit @ classifier * clip.logit_scale.detach()

    pixels = clip.preprocess(shapes_explorer.images.record(4).load())[None]
    with torch.no_grad():
        first, second = logits(clip(pixels))[0].argsort(descending=True)[:2]
    parts = attribute(
        shapes_explorer.attached,
        pixels,
        lambda embeds: logits(embeds)[:, first] - logits(embeds)[:, second],
    ).by_latent["attribution"][:12]
    listed = visit.listed()
    assert [one.latent for one in listed] == list(parts.index)
    assert [one.values[0] for one in listed] == pytest.approx(list(parts), rel=1e-3, abs=1e-5)


def test_colours_lie_where_latents_are_active(shapes_explorer, clip):
    visit = Visit(shapes_explorer, {"image": "5"})
    opened = visit.sides["plain"]
    assert opened.seen.size == (512, 512)
    plain = visit.pictures()["plain"]
    latent = visit.listed()[0].latent
    expected = heatmap(
        clip, shapes_explorer.attached.sae, shapes_explorer.images.record(5).load(), latent
    )
    np.testing.assert_allclose(opened.heatmap(latent).patches, expected.patches, rtol=1e-4)
    visit.toggle_color(latent)
    tinted = np.asarray(visit.pictures()["plain"], dtype=int)
    row, column = expected.peak
    y, x = row * 64 + 32, column * 64 + 32
    assert tinted[y, x, 0] - tinted[y, x, 2] > 60  # the first colour is orange
    assert visit.pictures()["plain"].size == plain.size
    visit.toggle_color(latent)
    assert np.array_equal(np.asarray(visit.pictures()["plain"]), np.asarray(plain))
    for one in range(8):
        visit.toggle_color(one)
    assert visit.state.shown == tuple(range(1, 8))


def test_a_dropped_picture_is_decoded_in_memory_and_shown_as_a_picked_one_is(
    shapes_explorer, monkeypatch
):
    picked = Visit(shapes_explorer, {"image": "9"})
    visit = Visit(shapes_explorer, {})
    content = encoded(shapes_explorer.images.record(9).load())

    def refuse(*args, **_):
        raise AssertionError(f"opened {args}")

    monkeypatch.setattr(builtins, "open", refuse)
    visit.open_upload(content)
    monkeypatch.undo()
    assert visit.state.image is None
    assert visit.predictions() == picked.predictions()
    assert "image" not in visit.state.to_query()


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG that claims to be so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0" * 99))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (base64.b64encode(png_of(60_000, 60_000)).decode(), "too many pixels"),
        (base64.b64encode(png_of(20_000, 3_000)).decode(), "max_pixels=50000000"),
        (base64.b64encode(b"GIF89a").decode(), "can't be read"),
        ("", "empty file"),
        ("no base 64!", "no picture"),
        ("A" * (MAX_UPLOAD_BYTES * 4 // 3 + 5), "at most 20 MB"),
        ({"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "no picture"),
        (["/etc/passwd"], "no picture"),
        (None, "no picture"),
    ],
)
def test_what_is_no_picture_or_too_large_is_refused_and_nothing_changes(
    shapes_explorer, content, reason
):
    visit = Visit(shapes_explorer, {"image": "1"})
    before = visit.state
    assert act(visit, {"kind": "upload", "content": content}) == frozenset()
    assert reason in visit.notices[0]
    assert visit.state == before


def test_no_path_from_the_browser_is_opened(shapes_explorer, tmp_path):
    picture, words = tmp_path / "picture.png", tmp_path / "words.txt"
    Image.new("RGB", (64, 64), "red").save(picture)
    words.write_text("a secret of {}\n", encoding="utf-8")
    visit = Visit(shapes_explorer, {"image": str(picture), "template": str(words)})
    assert visit.state.image is None
    assert not visit.sides
    visit.open_image(1)
    for content in (str(picture), f"file://{picture}", picture.as_posix() + "="):
        assert act(visit, {"kind": "upload", "content": content}) == frozenset()
        assert act(visit, {"kind": "open", "index": content}) == frozenset()
    assert visit.state.image == 1
    with pytest.raises(ValueError, match=r"want exactly one '\{\}'"):
        visit.ask(FEW, str(words))
    visit.predictions()  # the link's template is refused here, and the page's own is taken
    assert "want exactly one '{}'" in visit.notices[-1]
    assert visit.template == "shapes"


def test_visitors_share_nothing_even_at_the_same_time(shapes_explorer):
    def work(image: str) -> tuple:
        visit = Visit(shapes_explorer, {"image": image, "classes": FEW})
        visit.set_factor(visit.listed()[0].latent, 0)
        visit.rank_by("answer")
        return visit.predictions(), visit.listed(), visit.state.to_query()

    alone = {image: work(image) for image in ("3", "8", "11", "12")}
    together: dict[str, tuple] = {}

    def keep(image: str) -> None:
        together[image] = work(image)

    threads = [threading.Thread(target=keep, args=(image,)) for image in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_visits_are_kept_apart_forgotten_at_the_end_and_bounded(shapes_explorer):
    visits = Visits(shapes_explorer)
    first, second = visits.begin("a", {"image": "1"}), visits.begin("b", {"image": "2"})
    first.set_factor(3, 0)
    assert visits.get("a") is first
    assert visits.get("b") is second
    assert second.state == PageState(image=2)
    visits.end("a")
    assert visits.get("a") is None
    for number in range(16):
        visits.begin(str(number), {"rank": "answer"})
    assert len(visits) == 16
    assert visits.get("b") is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
requests = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(
            "open upload too_large shelf patch step whole color references find rank factor undo "
            "ask nothing".split()
        )
        | anything
    },
    optional=dict.fromkeys(
        "index content start row column rows columns latent words ranking factor classes template "
        "list".split(),
        anything,
    ),
)


@settings(max_examples=200, deadline=None)
@given(said=requests | anything)
def test_whatever_a_browser_sends_is_done_or_refused_in_words(tiny_visit, said):
    before = tiny_visit.state
    changed = act(tiny_visit, said)
    assert changed <= set(PARTS)
    if tiny_visit.notices:
        assert not changed
        assert tiny_visit.state == before


@pytest.fixture(scope="module")
def tiny_visit(without_text):
    return Visit(without_text, {"image": "0"})


def test_a_model_that_reads_no_class_names_answers_by_a_probe(without_text):
    visit = Visit(without_text, {"image": "0"})
    (found,) = visit.predictions().values()
    assert {one.name for one in found.answers} == {"red", "green", "blue"}
    assert sum(one.before for one in found.answers) == pytest.approx(1)
    visit.set_factor(visit.listed()[0].latent, 4)
    (changed,) = visit.predictions().values()
    assert [one.after for one in changed.answers] != [one.before for one in changed.answers]


def test_without_labels_nothing_answers_but_the_output_still_moves():
    images, model = NoisePictures(6), make_model()
    images.class_names = None
    visit = Visit(open_explorer(model, make_sae(model), images, progress=False), {"image": "1"})
    assert visit.predictions() == {}
    visit.rank_by("answer")
    latent = visit.listed()[0].latent
    assert visit.likeness()["plain"] == pytest.approx(1)
    visit.set_factor(latent, 0)
    assert visit.likeness()["plain"] < 0.9999


def test_an_sae_of_the_class_token_has_no_patches_to_choose():
    model = make_model()
    explorer = open_explorer(
        model, make_sae(model, token_kind="cls"), NoisePictures(6), progress=False
    )
    visit = Visit(explorer, {"image": "1", "patch": "0-0"})
    assert visit.grid is None
    assert "no patches" in visit.notices[0]
    assert act(visit, {"kind": "patch", "row": 0, "column": 0}) == frozenset()
    assert visit.listed()
    assert all(explorer.thumbs([one.latent for one in visit.listed()]).values())
    assert explorer.references(visit.listed()[0].latent)


def test_two_models_side_by_side(clip, adapted):
    scenes = ShapeScenes(8, split="test", n_objects=1)
    sae = shapes_sae(clip)
    explorer = open_explorer(clip, sae, scenes, adapted=adapted, progress=False)
    visit = Visit(explorer, {"image": "3", "classes": FEW})
    alone = Visit(open_explorer(clip, sae, scenes, progress=False), {"image": "3", "classes": FEW})
    found = visit.predictions()
    assert list(found) == list(visit.pictures()) == ["plain", "adapted"]
    assert found["plain"] == alone.predictions()["plain"]
    pixels = clip.preprocess(scenes.record(3).load())[None]
    with torch.no_grad():
        own = probabilities(adapted, adapted(pixels), FEW.split(", "), shape_scene_templates())
    assert {one.name: one.before for one in found["adapted"].answers} == pytest.approx(
        own, rel=1e-4
    )
    latent = visit.listed()[0].latent
    visit.set_factor(latent, 0)
    moved = visit.predictions()
    for side in found:
        assert moved[side].answers != found[side].answers


class Stream(NoisePictures):
    """Pictures that come in order, of unknown number."""

    def __init__(self):
        super().__init__(9)
        self.n_images, self.is_streaming = None, True
        self.order = list(range(9))

    def record(self, index):
        raise AssertionError("a stream has no record of a number")

    def records(self, start: int = 0):
        for index in self.order[start:]:
            yield NoisePictures.record(self, index)


def test_the_first_images_of_a_stream_can_be_picked():
    kept = KeptImages(Stream(), 5)
    assert [kept.record(i).id for i in range(kept.n_images)] == [f"{i}.png" for i in range(5)]
    model = make_model()
    explorer = open_explorer(model, make_sae(model), Stream(), n_reference_images=5, progress=False)
    assert explorer.n_images == explorer.atlas.info.n_images == 5
    assert Visit(explorer, {"image": "4"}).sides


def test_an_atlas_that_fits_is_taken_and_another_is_refused(tmp_path):
    model, images = make_model(), NoisePictures(12)
    sae = make_sae(model)
    analyze(model, sae, images, folder=tmp_path / "atlas", progress=False)
    analyze(model, sae, NoisePictures(7), folder=tmp_path / "other", progress=False)
    places = [tmp_path, tmp_path / "other", tmp_path / "atlas"]
    found = open_explorer(model, sae, images, places=places, n_reference_images=3, progress=False)
    assert found.atlas.folder == tmp_path / "atlas"
    short = open_explorer(model, sae, images, n_reference_images=3, progress=False)
    assert short.atlas.info.n_images == 3
    with pytest.raises(ValueError, match=r"the atlas in .*other is of noise .* but the images are"):
        open_explorer(model, sae, images, atlas=tmp_path / "other", progress=False)
    with pytest.raises(ValueError, match="n_reference_images is 0; want 1 or more"):
        open_explorer(model, sae, images, n_reference_images=0)


def test_latents_are_found_by_number_name_and_leading_class(shapes_explorer):
    explorer = Explorer(
        shapes_explorer.sides,
        shapes_explorer.images,
        shapes_explorer.atlas,
        shapes_explorer.images,
        names={17: "Round Things"},
    )
    visit = Visit(explorer, {"image": "0"})
    for words, latent in (("17", 17), ("round", 17), ("63", 63)):
        visit.find(words)
        assert visit.state.opened == latent
        assert latent in [one.latent for one in visit.listed()]
    visit.find("star")
    assert "star" in explorer.atlas.latents.loc[visit.state.opened, "top_class_name"]
    for words in ("64", "zebra", ""):
        with pytest.raises(ValueError, match="want"):
            visit.find(words)


def test_an_unreadable_image_is_said_and_the_page_stays():
    class Broken(NoisePictures):
        def record(self, index):
            from dataclasses import replace

            record = super().record(index)
            return replace(record, content=b"no picture") if index == 0 else record

    model = make_model()
    explorer = open_explorer(model, make_sae(model), Broken(8), progress=False)
    assert isinstance(explorer.images, ImageSource)
    visit = Visit(explorer, {})
    assert not visit.sides
    assert "image 0 can't be read" in visit.notices[0]
    visit.open_image(2)
    assert visit.sides


def test_a_side_that_knows_no_such_classes_is_said_and_the_other_answers(clip, adapted):
    class Head:
        def class_weights(self, encode_text, class_names):
            raise ValueError("it knows cat and dog; want classes of these")

    scenes = ShapeScenes(3, split="test", n_objects=1)
    adapted.bare_model.class_head = Head()
    try:
        explorer = open_explorer(clip, shapes_sae(clip), scenes, adapted=adapted, progress=False)
        visit = Visit(explorer, {"image": "1", "rank": "answer"})
        assert list(visit.predictions()) == ["plain"]
        assert visit.notices == ["adapted: it knows cat and dog; want classes of these"]
        assert "can’t tell these classes apart" in answer_view(visit)
        assert visit.listed()
    finally:
        del adapted.bare_model.class_head
