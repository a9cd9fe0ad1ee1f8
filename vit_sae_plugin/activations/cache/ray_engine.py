"""The shards of a cache as Ray tasks, on this machine's processors or on a cluster's.

Ray restarts what dies; what is written, and by whom, is decided as everywhere: a claim on a shard,
and a folder that appears whole (`write_shard`).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from vit_sae_plugin.activations.cache.activation_cache import ActivationCache
from vit_sae_plugin.activations.cache.cache_errors import (
    CacheMismatchError,
    CacheWriteError,
    ShardInUseError,
)
from vit_sae_plugin.activations.cache.shard_files import finished_numbers
from vit_sae_plugin.activations.cache.shard_writer import write_shard
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.fingerprints import known_model_fingerprint, short

if TYPE_CHECKING:
    from vit_sae_plugin.activations.cache.cache_plan import CachePlan
    from vit_sae_plugin.hooked_vit import HookedViT

LoadModel = Callable[[], "HookedViT"]
_BUSY_SECONDS = 1.0
_model_here: dict[str, HookedViT] = {}
"""In a Ray worker: the model of the shards that it writes, by fingerprint."""


def write_shards_with_ray(
    plan: CachePlan,
    images: Any,
    *,
    load_model: LoadModel | None = None,
    address: str | None = None,
    n_workers: int = 0,
    cpus_per_task: float = 1,
    gpus_per_task: float | None = None,
    max_retries: int = 3,
    progress: bool = True,
) -> ActivationCache:
    """Write the shards that a cache lacks, each as a Ray task.

    A task whose process or machine dies is run again, here or elsewhere. Shards that are there are
    left as they are, so giving it again goes on; other writers (`write_cache`, another engine) may
    work on the same cache. Rows don't depend on who wrote them.

    All machines must see the cache's folder, and the images, under the same path.

    Args:
        plan: the cache's, from `plan_cache`.
        images: the source of images that the plan was made with, as `open_images` takes it.
        load_model: loads the model in a worker, once a process. None: by the name in the plan.
        address: of a Ray cluster, such as `"auto"`; None: the `RAY_ADDRESS` variable's, one that is
            connected already, or a new one on this machine.
        n_workers: processes that decode images, for each task.
        cpus_per_task: what Ray reserves for a task.
        gpus_per_task: as well, such as 0.5 where two share a GPU; 0: none is used. None: 1 if the
            cluster has any.
        max_retries: how often a task is run again after its process died.
        progress: show a progress bar.

    Raises:
        ImportError: Ray isn't installed.
        CacheMismatchError: the images or a worker's model aren't the plan's.
        CacheWriteError: a shard's process died `max_retries` + 1 times, its task failed, or it
            can't be written.
        ValueError: the images are a stream, which only one process can walk.
    """
    ray = _import_ray()
    source = open_images(images)
    if source.is_streaming:
        raise ValueError(
            f"{source.name} is a stream, which one process walks; want --engine local, or images "
            "that have numbers (a folder)"
        )
    fingerprint = source.fingerprint()
    finished = set(finished_numbers(plan.folder))
    shards = [shard for shard in plan.shards if plan.parts[shard.part].fingerprint == fingerprint]
    if not shards:
        raise CacheMismatchError(
            f"the cache {plan.folder} isn't of {source.name} [{short(fingerprint)}]; want the "
            "images that it was begun with"
        )
    bar = tqdm(
        total=sum(shard.n_images for shard in shards),
        desc="Caching activations",
        unit=" images",
        disable=not progress,
    )
    with _connected(ray, address), bar:
        bar.update(sum(shard.n_images for shard in shards if shard.number in finished))
        n_gpus = gpus_per_task
        if n_gpus is None:
            n_gpus = 1.0 if ray.cluster_resources().get("GPU", 0) > 0 else 0.0
        task = ray.remote(
            num_cpus=cpus_per_task,
            num_gpus=n_gpus,
            max_retries=max_retries,
            max_calls=0,  # a process keeps its model for the next shard, on a GPU too
        )(_write)
        n_images = {s.number: s.n_images for s in shards if s.number not in finished}
        # the plan and the images go to each machine once
        given = (ray.put(plan), ray.put(images), ray.put(load_model), n_workers)
        waiting = deque(n_images)
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < _tasks_at_once(ray, cpus_per_task):
                    number = waiting.popleft()
                    running[task.remote(number, *given)] = number
                (done, *_), _ = ray.wait(list(running))
                number = running.pop(done)
                if _is_written(ray, done, number, plan, max_retries):
                    bar.update(n_images[number])
                else:  # by a writer that isn't ours; should it die, the shard is ours
                    waiting.append(number)
                    time.sleep(_BUSY_SECONDS)
        finally:
            for left in running:
                ray.cancel(left)
    return ActivationCache(plan.folder)


def _write(
    number: int, plan: CachePlan, images: Any, load_model: LoadModel | None, n_workers: int
) -> int:
    """One task."""
    wanted = plan.model["model_sha256"]
    if wanted not in _model_here:
        model = _loaded(plan, load_model)
        found = known_model_fingerprint(model)
        if found != wanted:
            raise CacheMismatchError(
                f"the cache {plan.folder} is of a model [{short(wanted)}], but this worker loaded "
                f"[{short(found)}]; want the same weights on all machines, or load_model="
            )
        _model_here[wanted] = model.eval()
    write_shard(plan, number, _model_here[wanted], images, n_workers=n_workers)
    return number


def _loaded(plan: CachePlan, load_model: LoadModel | None) -> HookedViT:
    if load_model is not None:
        return load_model()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"  # of those that Ray lets it see
    return plan.source(next(iter(plan.hooks))).load_model(device)


def _is_written(ray: Any, done: Any, number: int, plan: CachePlan, max_retries: int) -> bool:
    """Whether a task wrote its shard; False if another writer has it."""
    try:
        ray.get(done)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)  # of a task that raised, whose text is a traceback
        if isinstance(cause, ShardInUseError):
            return False
        if isinstance(cause, (CacheMismatchError, CacheWriteError)):
            raise cause from error
        raise CacheWriteError(
            f"shard {number} of {plan.folder}: {_reason(ray, error, cause, max_retries + 1)}; the "
            f"{len(finished_numbers(plan.folder))} shards that are finished stay: give the same "
            "command again to go on"
        ) from error
    return True


def _reason(ray: Any, error: Exception, cause: object, n_tries: int) -> str:
    """Why a task failed, in one line."""
    died = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError)
    if isinstance(error, died):
        return f"its process died {n_tries} times (out of memory?)"
    said = error if cause is None else cause
    lines = str(said).strip().splitlines()
    return f"{type(said).__name__}: {lines[0]}" if lines else type(said).__name__


def _tasks_at_once(ray: Any, cpus_per_task: float) -> int:
    """Twice as many as can run, so that none has to wait for us."""
    n_cpus = ray.cluster_resources().get("CPU", 1.0)
    return max(2, int(2 * n_cpus / max(cpus_per_task, 0.01)))


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to a cluster, ended again if we began it."""
    if ray.is_initialized():
        yield
        return
    ray.init(
        address=address or os.environ.get("RAY_ADDRESS"),
        include_dashboard=None if address or "RAY_ADDRESS" in os.environ else False,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # 0 GPUs hides them all
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            'Ray isn\'t installed; want: pip install "vit-sae-plugin[ray]", or --engine local'
        ) from error
    return ray
