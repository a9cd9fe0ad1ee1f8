"""The notebooks run from end to end in their short form, and are kept with what they printed."""

import json
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
@pytest.mark.filterwarnings("ignore")
def test_a_notebook_runs(script, tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_SAE_SHORT", "1")
    matplotlib.use("Agg")
    if script.stem == "02_photographs":
        pytest.importorskip("skimage")
    runpy.run_path(str(script))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_is_kept_with_its_outputs(script):
    made = script.with_suffix(".ipynb")
    assert made.stat().st_size < 1_000_000
    cells = json.loads(made.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    text = script.read_text(encoding="utf-8")
    for cell in code:
        assert not [o for o in cell["outputs"] if o["output_type"] == "error"]
        first = "".join(cell["source"]).splitlines()[0]
        assert first.lstrip("%") in text, "the notebook is older than its script"
