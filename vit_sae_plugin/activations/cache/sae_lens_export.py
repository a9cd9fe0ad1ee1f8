"""A cache as SAELens keeps activations: a folder of Hugging Face `datasets`, one row an image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from vit_sae_plugin.atomic_files import write_folder_atomically

if TYPE_CHECKING:
    from vit_sae_plugin.activations.cache.activation_cache import ActivationCache

DTYPES = ("float32", "float16")
SOURCE_FILE = "vit_sae_cache.json"
_BATCH_SIZE_IMAGES = 32


def export_to_sae_lens(
    cache: ActivationCache,
    path: str | Path,
    *,
    hook_names: Sequence[str] | None = None,
    dtype: str = "float32",
    progress: bool = False,
) -> Path:
    """Write a folder that SAELens's own `ActivationsStore` reads, where this package isn't needed.

    Give SAELens `use_cached_activations=True`, `cached_activations_path`, the hook's name, `d_in`
    and `context_size`: the tokens that the cache holds of an image. It reads images in order and
    mixes rows in its own buffer only. Its format has no place for the model: what the rows are, and
    of which images, is in `vit_sae_cache.json`, which SAELens doesn't read.

    Args:
        cache: the cache.
        path: the folder to write, which is new or empty.
        hook_names: which hooks, a column each. None: all.
        dtype: `"float32"` or `"float16"`; the format has no bfloat16.
        progress: show a progress bar.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds something.
        CacheMismatchError: the cache doesn't hold such a hook.
        ValueError: another dtype, a cache without rows, or an activation too large for float16.
    """
    from datasets import Array2D, DatasetInfo, Features
    from datasets.arrow_writer import ArrowWriter

    path, hooks = Path(path), list(hook_names or cache.hook_names)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; want one that SAELens reads: {', '.join(DTYPES)}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} holds something; want a new folder")
    shards = [shard for shard in cache.shards if cache.entries[shard].n_rows > 0]
    if not shards:
        raise ValueError(f"the cache {cache.path} has no rows; want one whose images are read")
    features = Features(
        {hook: Array2D(shape=(cache.n_tokens, cache.d_in(hook)), dtype=dtype) for hook in hooks}
    )
    files = {s: f"data-{n:05d}-of-{len(shards):05d}.arrow" for n, s in enumerate(shards)}

    def write(folder: Path) -> None:
        with tqdm(
            total=cache.n_images, desc="Exporting", unit=" images", disable=not progress
        ) as bar:
            for shard, name in files.items():
                with ArrowWriter(features=features, path=str(folder / name)) as writer:
                    for columns in _columns(cache, hooks, shard, dtype):
                        writer.write_batch(columns)
                        bar.update(len(columns[hooks[0]]))
                    writer.finalize()
        DatasetInfo(features=features).write_to_directory(str(folder))
        # what `datasets` keeps of a dataset beside its files; load_from_disk reads it
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in files.values()],
            "_fingerprint": cache.fingerprint()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        source = {
            "hooks": {hook: cache.source(hook).to_metadata() for hook in hooks},
            "images": [part.name for part in cache.plan.parts],
            "image_ids": cache.image_ids,
        }
        (folder / SOURCE_FILE).write_text(
            json.dumps(source, indent=1, ensure_ascii=False), encoding="utf-8"
        )

    write_folder_atomically(path, write)
    return path


def _columns(
    cache: ActivationCache, hooks: list[str], shard: int, dtype: str
) -> Iterator[dict[str, np.ndarray]]:
    """Some images at a time of a shard, for each hook."""
    images = cache.images(shard)
    index = images.loc[images["skipped"] == "", "index"].tolist()
    batches = [cache.images_in_order(hook, _BATCH_SIZE_IMAGES, index=index) for hook in hooks]
    for some in zip(*batches, strict=True):
        with np.errstate(over="ignore"):  # it is looked for below
            columns = {
                hook: batch.acts_btd.numpy().astype(dtype)
                for hook, batch in zip(hooks, some, strict=True)
            }
        for hook, values in columns.items():
            if not np.isfinite(values).all():
                largest = max(float(batch.acts_btd.abs().max()) for batch in some)
                raise ValueError(
                    f"an activation of {hook} is {largest:.3g}, more than float16 holds; want "
                    "dtype='float32' (--dtype float32)"
                )
        yield columns
