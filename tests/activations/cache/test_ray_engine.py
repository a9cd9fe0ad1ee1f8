"""Shards as Ray tasks on a local cluster of two workers, one of which is killed."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.activations.cache.killing_images import KillingImages, times_read
from tests.activations.cache.small_cache import HOOKS, small_cache, small_model
from vit_sae_plugin.activations.cache import (
    ActivationCache,
    CacheMismatchError,
    CacheWriteError,
    plan_cache,
    ray_engine,
)
from vit_sae_plugin.activations.cache.cache_errors import ShardInUseError
from vit_sae_plugin.activations.cache.ray_engine import write_shards_with_ray

pytest.importorskip("ray", reason="Ray isn't installed")
SETTINGS = {"hook_names": HOOKS, "images_per_shard": 4, "batch_size_images": 2}
N = 18


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """What one process writes."""
    torch.set_num_threads(1)  # as Ray's workers, for the last bit
    return small_cache(tmp_path_factory.mktemp("alone") / "c", model, KillingImages(N, None))


def test_a_killed_worker_is_replaced_and_nothing_is_written_twice(
    cluster, model, alone, tmp_path, capsys
):
    images = KillingImages(N, tmp_path, deadly=6)
    plan = plan_cache(tmp_path / "c", model, images, **SETTINGS)
    cache = write_shards_with_ray(plan, images, load_model=small_model)
    assert (tmp_path / "killed").exists()
    assert cache.fingerprint() == alone.fingerprint()
    # shard 1 was begun twice, images 4 to 6; all else was read once
    again = {4: 2, 5: 2, 6: 2}
    assert times_read(tmp_path) == dict.fromkeys(range(N), 1) | again
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1, "one bar"
    assert f"{N}/{N}" in shown

    write_shards_with_ray(plan, images, load_model=small_model, progress=False)
    assert times_read(tmp_path) == dict.fromkeys(range(N), 1) | again, "finished shards stay"


def test_a_worker_that_always_dies_is_named_and_the_rest_stays(cluster, model, alone, tmp_path):
    images = KillingImages(N, tmp_path, deadly=17, always=True)
    plan = plan_cache(tmp_path / "c", model, images, **SETTINGS)
    with pytest.raises(CacheWriteError, match=r"shard 4 of .*: its process died 1 times"):
        write_shards_with_ray(plan, images, load_model=small_model, max_retries=0, progress=False)
    partial = ActivationCache(tmp_path / "c", partial=True)
    assert 4 not in partial.shards
    for number, entry in partial.entries.items():
        assert entry == alone.entries[number]


def test_what_does_not_fit_is_refused(cluster, tmp_path, monkeypatch):
    images = KillingImages(4, None)
    plan = plan_cache(tmp_path / "c", small_model(2), images, **SETTINGS)
    with pytest.raises(CacheMismatchError, match=r"worker loaded .*; want the same weights"):
        write_shards_with_ray(plan, images, load_model=small_model, progress=False)
    with pytest.raises(CacheMismatchError, match="isn't of"):
        write_shards_with_ray(plan, KillingImages(5, None), progress=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install \"vit-sae-plugin\[ray\]\", or --engine"):
        write_shards_with_ray(plan, images)


def test_what_a_task_raises_is_told_in_one_line(tmp_path):
    exceptions = pytest.importorskip("ray").exceptions

    def told(error):
        def get(done):
            raise error

        ray = SimpleNamespace(exceptions=exceptions, get=get)
        plan = SimpleNamespace(folder=tmp_path)
        return ray_engine._is_written(ray, None, 7, plan, max_retries=3)

    def raised(cause):
        trace = "Traceback (most recent call last):\n  File ..."
        return exceptions.RayTaskError(
            "write", trace, cause, "worker", 1, "ip"
        ).as_instanceof_cause()

    assert told(raised(ShardInUseError("by another"))) is False
    for cause in (CacheMismatchError("other weights"), CacheWriteError("the disk is full")):
        with pytest.raises(type(cause)) as caught:
            told(raised(cause))
        assert caught.value is cause
    stay = "the 0 shards that are finished stay: give the same command again to go on"
    for error, reason in (
        (raised(ValueError("no image 'a'\nmore")), "ValueError: no image 'a'"),
        (raised(KeyError()), "KeyError"),
        (exceptions.OutOfMemoryError("low on memory\nTop 10"), "OutOfMemoryError: low on memory"),
        (exceptions.WorkerCrashedError(), "its process died 4 times (out of memory?)"),
    ):
        with pytest.raises(CacheWriteError) as caught:
            told(error)
        assert str(caught.value) == f"shard 7 of {tmp_path}: {reason}; {stay}"
