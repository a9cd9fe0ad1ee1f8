"""Getting particular images out of a source again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from PIL import Image

from vit_sae_plugin.datasets import ImageSource


def images_by_index(
    source: ImageSource, indices: Iterable[int]
) -> Iterator[tuple[int, Image.Image]]:
    """Load images by their index, in the order of the source, one at a time.

    A stream is walked once, up to the last index asked for.

    Raises:
        ValueError: the source has no such image.
    """
    wanted = sorted(set(indices))
    if not wanted:
        return
    if not source.is_streaming:
        for index in wanted:
            yield index, source.record(index).load()
        return
    remaining = set(wanted)
    for record in source.records():
        if record.index in remaining:
            remaining.remove(record.index)
            yield record.index, record.load()
            if not remaining:
                return
    raise ValueError(
        f"{source.name} ended before image {min(remaining)}; is it the source that was analysed?"
    )
