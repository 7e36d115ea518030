"""The notebook in docs/ runs from its first to its last cell."""

import json
import os
import subprocess
import sys

import pytest
from processes import QUICK_COMPILATION, ROOT, hide_torch
from tiny_models import write_small_minilm

NOTEBOOK = ROOT / "docs" / "train.ipynb"


@pytest.mark.slow
def test_every_cell_runs(tmp_path):
    """Its cells, as one program: what the notebook has beside Python would be an error here."""
    write_small_minilm(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    program = "\n".join(["import sys", *code, "print(result.step, len(result.history))"])
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "XLA_FLAGS": QUICK_COMPILATION,
        "PYTHONPATH": os.pathsep.join([hide_torch(tmp_path), str(ROOT)]),
    }
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert "2,000 sentences" in ran.stdout and ", 6 pairs" in ran.stdout
    assert "(2, 16)" in ran.stdout  # the vectors of the last cell
