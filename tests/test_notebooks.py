"""The notebooks run in their short form, and are kept with what they really printed and drew."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
BESIDES = {"02_photographs": ("skimage", "sklearn"), "05_adaptation": ("peft",)}
"""What a notebook installs that the package itself doesn't need."""
MACHINE_PATH = re.compile(r"(?<![\w.])(/tmp|/home|/root|/work|/Users|/usr|[A-Z]:\\)[/\\]")

each_notebook = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    """Where all of them run: later ones find the SAE of the first, as a reader's do."""
    return tmp_path_factory.mktemp("notebooks")


@each_notebook
@pytest.mark.filterwarnings("ignore")
def test_a_notebook_runs(script, shared_folder, monkeypatch):
    import matplotlib.pyplot as plt

    for module in BESIDES.get(script.stem, ()):
        pytest.importorskip(module)
    monkeypatch.chdir(shared_folder)
    monkeypatch.setenv("VIT_SAE_SHORT", "1")
    plt.switch_backend("agg")
    runpy.run_path(str(script))
    plt.close("all")


@each_notebook
def test_a_notebook_is_kept_as_its_script_says(script):
    made = script.with_suffix(".ipynb")
    assert made.stat().st_size < 1_000_000
    notebook = json.loads(made.read_text(encoding="utf-8"))
    kept = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert kept == cells_of(script), "run scripts/make_notebooks.py"
    address = f"blob/main/{made.relative_to(ROOT).as_posix()}"
    assert address in kept[0][1], "the first cell opens it in Colab"


@each_notebook
def test_a_notebooks_outputs_are_whole_and_tell_nothing_of_the_machine(script):
    notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    n_pictures = 0
    for output in (output for cell in code for output in cell["outputs"]):
        assert output["output_type"] in ("stream", "display_data", "execute_result"), output
        assert output.get("name") != "stderr", output
        shown = output.get("data", {})
        n_pictures += "image/png" in shown
        for kind, said in {"stream": output.get("text", ""), **shown}.items():
            if kind.startswith(("text/", "stream")):
                text = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", "".join(said))
                assert not MACHINE_PATH.search(text), text[:300]
    assert n_pictures >= 1


def cells_of(script: Path) -> list[tuple[str, str]]:
    """Kind and source of each cell of a script in percent format."""
    cells = []
    for part in re.split(r"^# %%", script.read_text(encoding="utf-8"), flags=re.M)[1:]:
        kind, _, body = part.partition("\n")
        body = body.strip("\n")
        if kind.strip() == "[markdown]":
            cells.append(("markdown", re.sub(r"^# ?", "", body, flags=re.M)))
        else:
            cells.append(("code", re.sub(r"^# %", "%", body, flags=re.M)))
    return cells
