"""What needs a process that has not imported the plugin; one for all, as imports take seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from vit_sae_plugin.saes import save_exported

from .test_export import CONFIGS, make_sae, rows
from .test_matryoshka_topk import inference_sae

CODE = """
import json, pathlib, sys
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

root = pathlib.Path(sys.argv[1])
rows = load_file(root / "rows.safetensors")["rows"]
folders = [path for path in root.iterdir() if path.is_dir()]
outputs = {path.name: SAE.load_from_disk(path)(rows).detach() for path in folders}
save_file(outputs, root / "outputs.safetensors")

before = set(sys.modules), set(SAE_CLASS_REGISTRY), set(SAE_TRAINING_CLASS_REGISTRY)
assert "vit_sae_plugin" not in sys.modules
import vit_sae_plugin
after = sys.modules, SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
new = [sorted(name for name in a if name not in b) for a, b in zip(after, before)]
(root / "new.json").write_text(json.dumps(new))
"""


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory):
    """Outputs expected, outputs of the fresh process, and what importing the plugin added."""
    root = tmp_path_factory.mktemp("saes")
    expected = {}
    for architecture in CONFIGS:
        sae = make_sae(architecture)
        plain = "topk" if architecture == "topk_ghost" else "standard"
        folder = save_exported(sae, root / f"exported_{architecture}", plain)
        assert json.loads((folder / "cfg.json").read_text())["architecture"] == plain
        expected[folder.name] = sae(rows()).detach()
    for architecture in ("standard_ghost", "topk_ghost"):
        sae = make_sae(architecture)
        sae.save_inference_model(root / architecture)
        expected[architecture] = sae(rows()).detach()
    nested = inference_sae()
    for k in (3, 24):
        save_exported(nested, root / f"nested_topk_{k}", "topk", k=k)
        expected[f"nested_topk_{k}"] = nested.decode(nested.encode(rows(), k=k)).detach()
    save_exported(nested, root / "nested", "standard")
    expected["nested"] = nested(rows()).detach()
    save_file({"rows": rows()}, root / "rows.safetensors")
    subprocess.run([sys.executable, "-W", "ignore", "-c", CODE, str(root)], check=True)
    outputs = load_file(root / "outputs.safetensors")
    return expected, outputs, json.loads((root / "new.json").read_text())


def test_exported_folders_load_without_the_plugin_with_equal_outputs(fresh_process):
    expected, outputs, _ = fresh_process
    assert outputs.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(outputs[name], expected[name], msg=name)
    assert (outputs["nested_topk_3"] - outputs["nested"]).norm() > 0.1


def test_importing_the_package_registers_and_imports_no_model_library(fresh_process):
    modules, sae_classes, training_classes = fresh_process[2]
    for registered in (sae_classes, training_classes):
        assert {"patchsae", "standard_ghost", "topk_ghost"} <= set(registered)
    added = {name.split(".")[0] for name in modules}
    assert added.isdisjoint({"open_clip", "timm", "torchvision", "matplotlib", "sklearn"})
