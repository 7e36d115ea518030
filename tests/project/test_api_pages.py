"""The API pages name modules that exist, and mkdocs builds them without a warning."""

import re
import subprocess
import sys

import pytest
from processes import ROOT

PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))


def test_the_pages_build_with_the_docstrings_of_each_module(tmp_path):
    pytest.importorskip("mkdocstrings", reason="builds the API pages")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in PAGES:
        html = (tmp_path / "api" / page.stem / "index.html").read_text()
        for module in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            assert f'id="{module}"' in html
    assert "Returns [n, D] float32" in (tmp_path / "api" / "encoding" / "index.html").read_text()
