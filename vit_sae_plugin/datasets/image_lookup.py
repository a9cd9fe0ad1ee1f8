"""Getting particular images out of a source again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from PIL import Image

from vit_sae_plugin.datasets import ImageRecord, ImageSource, UnreadableImageError


def images_by_index(
    source: ImageSource, indices: Iterable[int], missing: dict[int, str] | None = None
) -> Iterator[tuple[int, Image.Image]]:
    """Load images by their index, in the order of the source, one at a time.

    A stream is walked once, up to the last index asked for.

    Args:
        missing: filled with index → reason for images that can't be had. None: the first of them
            raises.

    Raises:
        ValueError: the source has no such image.
        UnreadableImageError: it has, but it can't be read.
    """
    wanted = sorted(set(indices))
    found = set()
    for record in _records(source, wanted):
        found.add(record.index)
        try:
            image = record.load()
        except UnreadableImageError as error:
            if missing is None:
                raise
            missing[record.index] = str(error)
        else:
            yield record.index, image
    for index in wanted:
        if index in found:
            continue
        if missing is None:
            raise ValueError(
                f"{source.name} ended before image {index}; want the source that was analysed"
            )
        missing[index] = f"{source.name} ended before it"


def _records(source: ImageSource, wanted: list[int]) -> Iterator[ImageRecord]:
    if not source.is_streaming:
        n_images = source.n_images or 0
        yield from (source.record(index) for index in wanted if index < n_images)
        return
    remaining = set(wanted)
    for record in source.records() if remaining else ():
        if record.index in remaining:
            remaining.remove(record.index)
            yield record
            if not remaining:
                return
