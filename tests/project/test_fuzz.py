"""A hundred damaged files for every reader, and those that were once found to break one."""

import pytest
from fuzz_targets import TARGETS, make_check, written
from processes import ROOT

from jtcse_jax.errors import UserError

# tests/samples/TARGET/WHAT IS WRONG/the files, below the folder that the target makes.
FOUND = sorted((ROOT / "tests" / "samples").glob("*/*"))
EXAMPLES = {"checkpoint": 40}


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files_are_read_or_refused(target, tmp_path):
    make_check(target, tmp_path, max_examples=EXAMPLES.get(target, 100), derandomize=True)()


@pytest.mark.parametrize("found", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_stays_mended(found, tmp_path):
    _, read = TARGETS[found.parent.name](tmp_path)
    paths = [path for path in found.rglob("*") if path.is_file()]
    files = {path.relative_to(found).as_posix(): path.read_bytes() for path in paths}
    with written(tmp_path, files), pytest.raises(UserError):
        read()
