"""The public names, and what importing the package does."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vit_sae_plugin

PUBLIC = """
    HookedViT HookedViTConfig HookedSAEViT
    PatchSAE PatchSAEConfig PatchTrainingSAE PatchTrainingSAEConfig
    MatryoshkaTopKSAE MatryoshkaTopKSAEConfig
    MatryoshkaTopKTrainingSAE MatryoshkaTopKTrainingSAEConfig
    PatchAggregatedSAE PatchAggregatedSAEConfig
    LatentAtlas analyze ViTSAERunnerConfig ViTSAETrainingRunner ViTActivationsStore
    AttachedSAE evaluate_sae localize explain heatmap open_images write_report load_pretrained_sae
""".split()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name):
    assert getattr(vit_sae_plugin, name).__name__ == name
    assert name in vit_sae_plugin.__all__
    assert name in dir(vit_sae_plugin)


def test_a_module_of_the_cache_is_what_its_name_says():
    cache = importlib.import_module("vit_sae_plugin.activations.cache")
    for path in Path(cache.__file__).parent.glob("[a-z]*.py"):
        module = importlib.import_module(f"{cache.__name__}.{path.stem}")
        assert getattr(cache, path.stem) is module, f"{path.stem} is also a function's name"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'PatchSEA'"):
        vit_sae_plugin.PatchSEA  # noqa: B018


def test_importing_twice_is_harmless_and_registers_the_architectures():
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    importlib.reload(vit_sae_plugin)
    for architecture in ("patchsae", "matryoshka_topk"):
        assert architecture in SAE_CLASS_REGISTRY
        assert architecture in SAE_TRAINING_CLASS_REGISTRY
    assert "patch_aggregated" in SAE_CLASS_REGISTRY
    assert {"standard_ghost", "topk_ghost"} <= set(SAE_TRAINING_CLASS_REGISTRY)


@pytest.mark.parametrize("package", ["vit_sae_plugin", "vit_sae_plugin.report"])
def test_type_checkers_see_every_name_that_is_imported_on_first_use(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for_checkers = [node for node in tree.body if ast.unparse(node).startswith("if TYPE_CHECKING")]
    seen = {
        alias.asname: node.module
        for node in for_checkers[0].body
        for alias in node.names
        if alias.name == alias.asname
    }
    assert seen == module._HOME_OF
    assert set(module.__all__) == set(seen)


def test_the_package_is_marked_as_typed():
    assert (Path(vit_sae_plugin.__file__).parent / "py.typed").is_file()


def test_docstrings_are_markdown():
    """Names stand in backticks, which editors and mkdocstrings show; Sphinx's roles they don't."""
    of_sphinx = re.compile(
        r":[a-z]+:`[^`]*`|^\s*:(param|returns?|raises|rtype)\b|^=+ +=+", re.MULTILINE
    )
    for path in sorted(Path(vit_sae_plugin.__file__).parent.rglob("*.py")):
        found = of_sphinx.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.name}: {found[0]!r}; want the name in backticks"


MISSPELT = """
import vit_sae_plugin
from vit_sae_plugin import HookedViT, open_images
from vit_sae_plugin.report import write_report
HookedViT.from_pretraned("shapes-clip")
vit_sae_plugin.analyse
open_images("shapes", from_fil=True).n_imagse
write_report()
number: int = HookedViT.from_pretrained("shapes-clip")
"""


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_find_misspelt_names(checker, tmp_path):
    root = Path(vit_sae_plugin.__file__).parents[1]
    beside = Path(sys.executable).with_name(checker)  # a virtual environment may not be on PATH
    program = str(beside) if beside.is_file() else shutil.which(checker)
    if program is None:
        pytest.skip(f"{checker} is not installed")
    if checker == "mypy" and not (root / ".mypy_cache").is_dir():
        pytest.skip("mypy has no cache here, and would take minutes: run mypy first, as make lint")
    (tmp_path / "misspelt.py").write_text(MISSPELT)
    options = ["--cache-dir", str(root / ".mypy_cache")] if checker == "mypy" else []
    done = subprocess.run(
        [program, *options, str(tmp_path / "misspelt.py")],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    found = [line for line in done.stdout.splitlines() if "misspelt.py" in line]
    for number, name in ((5, "from_pretraned"), (6, "analyse"), (7, "n_imagse"), (8, "atlas")):
        assert any(f":{number}:" in line and name in line for line in found), (name, found)
    assert any(":9:" in line and "HookedViT" in line for line in found), found
