"""Whatever a file is, it becomes the right RGB picture or is refused for the right reason."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.datasets.odd_images import Expected, encoded, odd_files, two_colours
from vit_sae_plugin.datasets import DecodingLimits, UnreadableImageError
from vit_sae_plugin.datasets.image_decoding import decode_image

ODD_FILES = odd_files()


def check(picture: Image.Image, expected: Expected) -> None:
    assert picture.mode == "RGB"
    assert picture.size == expected.size
    corners = ((0, 0), expected.top_left), ((picture.width - 1, 0), expected.top_right)
    for place, colour in corners:
        if colour is not None:
            seen = np.array(picture.getpixel(place))
            assert np.abs(seen - np.array(colour)).max() <= expected.tolerance, (seen, colour)


@pytest.mark.parametrize("name", ODD_FILES)
def test_each_odd_file_is_converted_or_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    content, expected = ODD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    for given_as in (path, str(path), content):
        if expected.refusal is None:
            check(decode_image(given_as), expected)
        else:
            with pytest.raises(UnreadableImageError) as caught:
                decode_image(given_as)
            assert caught.value.reason.partition(": ")[0] == expected.refusal


def test_nothing_is_printed_or_warned_about(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for content, expected in ODD_FILES.values():
            if expected.refusal is None:
                decode_image(content)
            else:
                with pytest.raises(UnreadableImageError):
                    decode_image(content)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(orientation: int, format: str) -> None:
    picture = Image.new("RGB", (24, 16))
    picture.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture, format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(content)))
    decoded = decode_image(content)
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))
    # A preprocessing that looks at EXIF itself must find nothing left to turn.
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(decoded)), np.asarray(upright))


def test_the_limits_can_be_moved_both_ways() -> None:
    content = encoded(Image.new("L", (30, 20)), "PNG")
    assert decode_image(content, DecodingLimits(max_pixels=600)).size == (30, 20)
    with pytest.raises(UnreadableImageError, match="30 x 20, max_pixels=599"):
        decode_image(content, DecodingLimits(max_pixels=599))
    with pytest.raises(UnreadableImageError, match=r"30 x 20, max_aspect_ratio=1\.4"):
        decode_image(content, DecodingLimits(max_aspect_ratio=1.4))
    decode_image(content, DecodingLimits(max_aspect_ratio=1.5))


def test_a_limit_beyond_what_pillow_itself_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    content = encoded(Image.new("L", (30, 20)), "PNG")
    with pytest.raises(UnreadableImageError, match="too many pixels"):
        decode_image(content, DecodingLimits(max_pixels=200))
    assert Image.MAX_IMAGE_PIXELS == 100
    assert decode_image(content, DecodingLimits(max_pixels=601)).size == (30, 20)


@pytest.mark.parametrize("wrong", [{"max_pixels": 0}, {"max_aspect_ratio": 0.5}])
def test_impossible_limits_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DecodingLimits(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "no permission to read it"),
        (OSError(5, "Input/output error"), "cannot be opened: Input/output error"),
        (OSError(36, "File name too long"), "cannot be opened: File name too long"),
    ],
)
def test_files_the_system_does_not_hand_out(
    error: OSError, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_to_open(*args: object, **kwargs: object) -> None:
        raise error

    path = tmp_path / "locked.jpg"
    path.write_bytes(b"x")
    monkeypatch.setattr("builtins.open", refuse_to_open)  # root may open anything
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(path)
    assert caught.value.reason == reason


@pytest.mark.parametrize("mode", ["L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK"])
def test_pictures_in_memory_of_any_mode_become_rgb(mode: str) -> None:
    picture = Image.new(mode, (3, 2))
    decoded = decode_image(picture)
    assert (decoded.mode, decoded.size) == ("RGB", (3, 2))


def test_arrays_keep_their_values() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(np.asarray(decode_image(array)), array)
    grey = np.asarray(decode_image(array[..., :1]))
    assert np.array_equal(grey, np.repeat(array[..., :1], 3, axis=2))
    assert np.array_equal(np.asarray(decode_image(array[..., 0])), grey)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(n for n, (content, _) in ODD_FILES.items() if 40 < len(content) < 9000)),
    st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 255)), max_size=6),
    st.integers(0, 9000),
)
def test_damage_of_any_kind_gives_a_picture_or_a_refusal(
    name: str, changes: list[tuple[int, int]], n_kept: int
) -> None:
    content = bytearray(ODD_FILES[name][0])
    for place, value in changes:
        content[place % len(content)] = value
    try:
        mode = decode_image(bytes(content[: max(n_kept, 1)]), DecodingLimits(max_pixels=10**6)).mode
    except UnreadableImageError as error:
        mode = "refused" if error.reason else "refused without a reason"
    assert mode in ("RGB", "refused")


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=20))
def test_16_bit_grey_is_scaled_to_the_nearest_8_bit_value(values: list[int]) -> None:
    content = encoded(Image.fromarray(np.array([values], dtype=np.uint16)), "PNG")
    seen = np.asarray(decode_image(content, DecodingLimits(max_aspect_ratio=1000)))[0, :, 0]
    assert np.abs(seen * 257.0 - np.array(values)).max() <= 257 / 2


def test_other_warnings_are_still_shown_once_however_many_images_are_read() -> None:
    content = encoded(two_colours((1, 2, 3), (4, 5, 6)), "PNG")
    decode_image(content)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(5):
            decode_image(content)
            warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["something else"]
