"""docs/adaptation.md: its Python runs as written, on fewer images."""

from tests.test_docs import ROOT, blocks
from vit_sae_plugin.hooked_vit import HookedViT

SMALL = {"n_images=3000": "n_images=800", "shots=16": "shots=2, epochs=1"}


def test_the_pages_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "docs" / "adaptation.md", "python")
    for whole, less in SMALL.items():
        assert whole in block
        block = block.replace(whole, less)
    names: dict = {}
    exec(compile(block, "adaptation.md", "exec"), names)
    assert isinstance(names["model"], HookedViT)
    assert repr(names["model"].cfg.tokens).endswith("tokens: 1 class, 64 patch, 4 prompt)")
