"""``vit-sae cache --engine ray``, ranks of torchrun, and ``vit-sae export cache:…``."""

import datasets
import pytest

from tests.cli.command import vit_sae
from vit_sae_plugin.activations.cache import ActivationCache, ray_engine, write_shards

HOOK = "blocks.1.hook_resid_post"


def cache_command(folder, photos, *more):
    return vit_sae(
        *("cache", folder, "--images", photos, "--model", "shapes-clip", "--hook-name", HOOK),
        *("--batch-size-images", 4, *more),
    )


def test_the_ray_engine_gets_what_was_asked_for(photos, tmp_path, monkeypatch, capsys):
    seen = {}

    def write(plan, images, *, load_model, **settings):
        seen.update(settings, model=load_model(), images=images)
        return write_shards(plan, seen["model"], images, progress=False)

    monkeypatch.setattr(ray_engine, "write_shards_with_ray", write)
    more = ("--engine", "ray", "--gpus-per-task", 0.5, "--ray-address", "auto", "--n-workers", 1)
    assert cache_command(tmp_path / "c", photos, *more) == 0
    assert seen["model"].model_name == "shapes-clip"
    del seen["model"]
    assert seen == {
        "images": str(photos),
        "gpus_per_task": 0.5,
        "address": "auto",
        "n_workers": 1,
    }
    assert "Train from it" in capsys.readouterr().out
    assert cache_command(tmp_path / "d", photos, "--ray-address", "auto") == 2
    assert "--ray-address and --gpus-per-task go with --engine ray" in capsys.readouterr().err


def test_of_the_ranks_that_torchrun_starts_the_first_speaks(photos, tmp_path, monkeypatch, capfd):
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert cache_command(tmp_path / "c", photos) == 0
        shown = capfd.readouterr()
        assert ("Caching activations" in shown.err) == (rank == "0")
        assert ("Train from it" in shown.out) == (rank == "0")


def test_a_cache_is_exported_for_saelens(photos, tmp_path, capsys):
    cache_command(tmp_path / "c", photos)
    cache = f"cache:{tmp_path / 'c'}"
    assert vit_sae("export", cache, tmp_path / "out", "--dtype", "float16") == 0
    assert f"hook_name={HOOK!r}, context_size=65, d_in=128" in capsys.readouterr().out
    found = datasets.load_from_disk(str(tmp_path / "out"))
    assert len(found) == ActivationCache(tmp_path / "c").n_images == 12
    assert found.features[HOOK].dtype == "float16"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cache:there", "out", "--k", 3), "--architecture and --k go with an SAE's folder"),
        (("cache:nowhere", "out"), "there is no activation cache in 'nowhere'"),
        (("sae", "out", "--dtype", "float16"), "--hook-name and --dtype go with cache:FOLDER"),
    ],
)
def test_exports_that_make_no_sense_are_refused(
    photos, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    cache_command("there", photos)
    assert vit_sae("export", *words) == 2
    assert message in capsys.readouterr().err
