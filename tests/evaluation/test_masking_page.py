"""docs/masking.md runs as it is written, on an SAE of random weights and fewer images."""

import re
from pathlib import Path

import torch

from vit_sae_plugin import HookedViT, PatchSAE, PatchSAEConfig
from vit_sae_plugin.activations import ActivationSource

PAGE = Path(__file__).parents[2] / "docs" / "masking.md"


def test_every_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = HookedViT.from_pretrained("shapes-clip")
    torch.manual_seed(0)
    sae = PatchSAE(PatchSAEConfig(d_in=model.cfg.d_model, d_sae=640))
    sae.b_enc.data = -2 * torch.rand(640) - 1
    ActivationSource.from_model(model, "blocks.2.hook_resid_post").stamp(sae, model)
    sae.save_model("demo-results/run/sae")
    page = PAGE.read_text(encoding="utf-8")
    for whole, less in (("n_images=200", "n_images=4"), ("n_images=1000", "n_images=400")):
        assert whole in page
        page = page.replace(whole, less)
    names: dict = {}
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    assert len(snippets) >= 5
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
    assert len(names["result"].image_id) == 4
    assert len(names["found"].table) > 0
