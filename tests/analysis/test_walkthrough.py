"""The walk-through in docs/analyze.md runs as it is written, on an SAE of random weights."""

import re
from pathlib import Path

import torch
from PIL import Image

from vit_sae_plugin import HookedViT, PatchSAE, PatchSAEConfig
from vit_sae_plugin.activations import ActivationSource

PAGE = Path(__file__).parents[2] / "docs" / "analyze.md"


def test_every_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = HookedViT.from_pretrained("shapes-clip")
    torch.manual_seed(0)
    sae = PatchSAE(PatchSAEConfig(d_in=model.cfg.d_model, d_sae=640))
    sae.b_enc.data = -2 * torch.rand(640) - 1
    source = ActivationSource.from_model(model, "blocks.2.hook_resid_post")
    for key, value in source.to_metadata().items():
        sae.cfg.metadata[key] = value
    sae.save_model("demo-results/run/sae")

    page = PAGE.read_text(encoding="utf-8")
    for whole, less in (("n_images=2000", "n_images=40"), ("n_latents=50", "n_latents=3")):
        assert whole in page
        page = page.replace(whole, less)
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    assert len(snippets) > 8
    names = {}
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
    for name in [*re.findall(r'savefig\("(.*?)"\)', page), "overlays.png"]:
        assert Image.open(name).width > 300
    assert Path("report/index.html").is_file()
    assert Path("atlas/atlas.json").is_file()
