"""The notebooks run to their end, with less to learn, and hold no outputs in git."""

from pathlib import Path

import nbformat
import pytest
from command import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SHORT = {  # what takes the place of the cell that is tagged `parameters`
    "tutorial": """
count, rounds = 40, 1
overrides = [
    "em.steps_per_round=4", "prior.steps=4", "sampler.steps=4", "network.channels=[16]",
    "network.blocks=[1]", "init.iterations=3", "metric.samples=2", "metric.subset=8",
]""",
    "em": "size, rounds, steps, channels = 200, 1, 4, [16]",
}


def tagged(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder; an error in a cell is raised here."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = tagged(notebook)
    names = {line.partition("=")[0].strip() for line in parameters.source.splitlines()}
    parameters.source = SHORT[path.stem].strip()
    short = {line.partition("=")[0].strip() for line in parameters.source.splitlines()}
    assert names <= short, f"the parameters of {path.name} have other names"
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    drawn = [o for c in notebook.cells for o in c.get("outputs", ()) if "data" in o]
    assert any("image/png" in output["data"] for output in drawn)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_outputs(path: Path) -> None:
    """They would be of another version, and every run of it a change."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
