"""Wheel and source distribution hold what an installed package needs, and nothing else."""

import os
import platform
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.c_compiler import C_COMPILERS
from vit_sae_plugin import cpu_kernels
from vit_sae_plugin.kernel_cache import processor

ROOT = Path(__file__).parent.parent


def build(folder, *kinds, **environment):
    command = [sys.executable, "-m", "build", *kinds, "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel, built from the source distribution that lies beside it."""
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def wheel(built):
    with zipfile.ZipFile(built) as archive:
        yield archive


@pytest.fixture(scope="module")
def in_tree():
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "vit_sae_plugin").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return package | {"vit_sae_cli.py"}


def test_the_wheel_holds_every_file_of_the_package(wheel, in_tree):
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == in_tree


def test_the_source_distribution_holds_the_package_and_what_builds_it(built, in_tree):
    (path,) = built.parent.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    of_building = "pyproject.toml hatch_build.py README.md LICENSE PKG-INFO .gitignore".split()
    assert names == in_tree | {*of_building, "CHANGELOG.md", "CITATION.cff"}


def test_links_of_the_readme_are_whole_on_a_package_index(wheel):
    metadata = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
    text = wheel.read(metadata).decode()
    version = re.search(r"^Version: (\S+)", text, re.M)[1]
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", text)
    assert [link for _, link in links if not link.startswith("https://")] == []
    (picture,) = [link for mark, link in links if mark]
    assert picture.endswith(f"/raw/v{version}/docs/images/latents.png")
    assert any(link.endswith(f"/blob/v{version}/docs/ten_minutes.md") for _, link in links)


def test_weights_presets_and_templates_are_among_them(wheel):
    names = set(wheel.namelist())
    for file in ("open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"):
        assert f"vit_sae_plugin/shapes_clip/{file}" in names
    for preset in ("patchsae-vit-b-16", "msae-rw-vit-l-14", "msae-uw-vit-l-14", "relu", "topk"):
        assert f"vit_sae_plugin/training/presets/{preset}.yaml" in names
    assert any(name.startswith("vit_sae_plugin/report/") for name in names if "html" in name)
    assert "vit_sae_plugin/py.typed" in names


def test_the_packaged_model_is_small(wheel):
    sizes = [
        info.file_size
        for info in wheel.infolist()
        if info.filename.startswith("vit_sae_plugin/shapes_clip/")
    ]
    assert sum(sizes) <= 8 * 2**20


def test_the_wheel_installs_the_command_and_the_licence(wheel):
    entry_points = next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "vit-sae = vit_sae_cli:main" in wheel.read(entry_points).decode()
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


@pytest.mark.skipif(
    not C_COMPILERS or (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="kernels are compiled ahead on Linux x86_64, by a C compiler",
)
def test_a_wheel_with_kernels_serves_a_machine_without_a_compiler(tmp_path, monkeypatch):
    path = build(tmp_path, "--wheel", VIT_SAE_WHEEL_KERNELS="1")
    assert path.name.endswith("-py3-none-linux_x86_64.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    sources = sorted((tmp_path / "vit_sae_plugin").rglob("*.c"))
    assert len(sources) == len(list((ROOT / "vit_sae_plugin").rglob("*.c"))) > 0
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    supported = cpu_kernels._LEVELS["x86-64-v3"] <= set(processor()["flags"].split())
    for source in sources:
        for level in cpu_kernels._LEVELS:
            assert source.with_name(f"{source.stem}.float.{level}.so").is_file()
        if supported:
            assert cpu_kernels._compiled.__wrapped__(str(source.with_suffix(".py"))) is not None
