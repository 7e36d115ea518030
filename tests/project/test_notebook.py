"""The notebook in docs/ runs from its first to its last cell."""

import os

import pytest
from processes import QUICK_COMPILATION, ROOT, WITHOUT_TORCH
from tiny_models import write_small_minilm


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    write_small_minilm(tmp_path)
    path = [WITHOUT_TORCH, str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", QUICK_COMPILATION)
    notebook = nbformat.read(ROOT / "docs" / "train.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    printed = [
        "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    _, first, last = printed
    assert "2,000 sentences" in first and ", 6 pairs" in first
    assert last.startswith("(2, 16) ")  # two vectors of the small towers
    assert (tmp_path / "runs" / "python" / "train_config.json").is_file()
