"""The Hugging Face hub and SAELens's loaders, on a stand-in of the hub's client."""

import warnings

import huggingface_hub
import pytest
import torch
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface

from tests.pretrained import small_files as small
from tests.pretrained.hub_stand_in import HubStandIn
from tests.pretrained.test_formats import ROWS, outputs
from vit_sae_plugin.pretrained import (
    FORMATS,
    HubError,
    disk_loader,
    hub_loader,
    load_pretrained_sae,
    register_release,
)
from vit_sae_plugin.pretrained.sae_lens_loaders import KINDS

FIRST_OF_KIND = {file.kind: file for file in reversed(small.SMALL_FILES)}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return HubStandIn(tmp_path / "hub", monkeypatch)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*doesn't say.*")
        yield


def in_repository(hub, small_file, repo="org/repo"):
    """Writes a small file into a repository; its place there."""
    folder = hub.repository(repo)
    place = small_file.write(folder)
    return place.relative_to(folder).as_posix()


@pytest.mark.parametrize("kind", sorted(FORMATS))
@torch.no_grad()
def test_every_kind_is_read_from_a_repository(kind, hub, tmp_path):
    small_file = FIRST_OF_KIND[kind]
    inside = in_repository(hub, small_file)
    sae = load_pretrained_sae(f"{kind}:org/repo/{inside}".removesuffix("/."), **small_file.options)
    assert (outputs(sae, ROWS)[0] - small_file.encode(ROWS)).abs().max() < 2e-5
    assert sae.cfg.metadata.source.startswith(f"{kind}:org/repo")
    for name, value in small_file.metadata.items():
        assert sae.cfg.metadata[name] == value


def test_only_what_is_needed_is_fetched(hub):
    in_repository(hub, FIRST_OF_KIND["prisma"])
    (hub.folder("org/repo") / "n_images_2600058.onnx").write_text("large")
    load_pretrained_sae("prisma:org/repo")
    assert set(hub.asked) == {"n_images_2600058.pt", "config.json", "README.md"}


def test_a_repository_of_several_saes_wants_a_file(hub):
    in_repository(hub, FIRST_OF_KIND["visaebench"])
    folder = hub.folder("org/repo")
    (folder / "other").mkdir()
    (folder / "other" / "sae.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"2 files named like sae\.pt.*name one, as in"):
        load_pretrained_sae("visaebench:org/repo", input_statistics="none")
    with pytest.raises(FileNotFoundError, match="no 'third' in the repository"):
        load_pretrained_sae("visaebench:org/repo/third", input_statistics="none")
    load_pretrained_sae("visaebench:org/repo/batchtopk_8x_k64", input_statistics="none")


def test_a_repository_that_is_not_there(hub):
    with pytest.raises(HubError, match="org/none can't be had from the Hugging Face hub") as caught:
        load_pretrained_sae("prisma:org/none")
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    def unreachable(self, **_other):
        raise ConnectionError("Max retries exceeded\nwith url: /api/models/org/repo")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unreachable)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=r"ConnectionError: Max retries.*connection") as caught:
        load_pretrained_sae("prisma:org/a-repository-that-no-one-has/file.pt")
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_what_was_fetched_earlier_needs_no_hub(monkeypatch, tmp_path):
    small_file = FIRST_OF_KIND["prisma"]
    small_file.write(tmp_path)

    def unreachable(self, **_other):
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unreachable)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo_id, **_other: str(tmp_path)
    )
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo_id, filename, **_other: tmp_path / filename
    )
    sae = load_pretrained_sae("prisma:org/repo")
    assert (sae.encode(ROWS) - small_file.encode(ROWS)).abs().max() < 2e-5


# --- SAELens's own functions ------------------------------------------------------------------


def test_the_table_of_kinds_is_that_of_the_readers():
    assert set(KINDS) == set(FORMATS)


@torch.no_grad()
def test_from_pretrained_with_a_loader(hub):
    in_repository(hub, FIRST_OF_KIND["clipscope"])
    sae = SAE.from_pretrained(
        "org/repo", "22_resid/1200013184.pt", converter=hub_loader("clipscope")
    )
    assert (sae.encode(ROWS) - FIRST_OF_KIND["clipscope"].encode(ROWS)).abs().max() < 2e-5
    assert sae.cfg.metadata.hook_name == "blocks.22.hook_resid_post"


@torch.no_grad()
def test_from_pretrained_finds_a_registered_release(hub):
    small_file = next(f for f in small.SMALL_FILES if f.name == "overcomplete topk")
    in_repository(hub, small_file, "org/overcomplete-saes")
    saes = {"first": "sae.pth"}
    for _ in range(2):  # again is harmless
        register_release(
            "a-release", "overcomplete", "org/overcomplete-saes", saes, **small_file.options
        )
    sae = SAE.from_pretrained("a-release", "first")
    assert (sae.encode(ROWS) - small_file.encode(ROWS)).abs().max() < 2e-5
    assert load_sae_config_from_huggingface("a-release", "first")["k"] == small.K
    with pytest.raises(ValueError, match="ID second not found in release a-release"):
        SAE.from_pretrained("a-release", "second")
    with pytest.raises(ValueError, match="SAELens has a release 'gpt2-small-res-jb' already"):
        register_release("gpt2-small-res-jb", "prisma", "a/b", {})
    with pytest.raises(ValueError, match="'prism' is no kind"):
        register_release("another", "prism", "a/b", {})


@torch.no_grad()
def test_load_from_disk_with_a_loader(tmp_path):
    small_file = next(f for f in small.SMALL_FILES if f.name.startswith("saev without"))
    place = small_file.write(tmp_path)
    sae = SAE.load_from_disk(place, converter=disk_loader("saev", **small_file.options))
    assert (outputs(sae, ROWS)[0] - small_file.encode(ROWS)).abs().max() < 2e-5
