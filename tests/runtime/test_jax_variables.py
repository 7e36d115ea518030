"""A variable of jax in the user's environment changes no command's numbers and stops none."""

import os
import subprocess
import sys

import jax
import pytest
from processes import WITHOUT_TORCH

from jtcse_jax import jax_variables

OBEYED = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "JAX_LOG_COMPILES": "false"}


def test_only_variables_of_the_machine_are_left(capsys):
    options = [name.upper() for name in jax.config.values if name.startswith("jax_")]
    environ = {"HOME": "x"} | dict.fromkeys(options, "banana") | {"JAX_A_NEW_ONE": "1"} | OBEYED
    environ = {name: value for name, value in environ.items() if name not in jax_variables.OBEYED}
    jax_variables.ignore_others(environ | OBEYED)
    warned = capsys.readouterr().err
    for name in ("JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_A_NEW_ONE"):
        assert name in warned
    kept = dict(environ) | OBEYED
    jax_variables.ignore_others(kept)
    assert kept == {"HOME": "x"} | OBEYED
    for name in ("x64", "prng", "precision", "promotion", "debug", "jit", "guard", "threefry"):
        assert not [option for option in jax_variables.OBEYED if name.upper() in option]


@pytest.mark.parametrize(
    ("name", "value"), [("JAX_NUM_CPU_DEVICES", "two"), ("JAX_ENABLE_COMPILATION_CACHE", "banana")]
)
def test_malformed_value_is_one_line(capsys, name, value):
    with pytest.raises(SystemExit) as stopped:
        jax_variables.ignore_others({name: value})
    assert stopped.value.code == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "whole", "expected"),
    [
        (["-m"], ["python", "-m", "jtcse_jax.encode", "--model", "x"], True),
        (["-m"], ["python", "-X", "dev", "-mjtcse_jax.encode"], True),
        (["-m"], ["python", "-m", "pytest"], False),
        (["/usr/bin/jtcse", "encode"], ["python", "/usr/bin/jtcse", "encode"], True),
        (["train.py"], ["python", "train.py"], False),
        ([""], ["python"], False),
    ],
)
def test_library_is_told_from_a_command(argv, whole, expected):
    assert jax_variables.is_command(argv, whole) == expected


@pytest.mark.parametrize("name", ["JAX_ENABLE_X64", "JAX_NUMPY_RANK_PROMOTION"])
def test_command_starts_whatever_the_variable_has(name):
    done = subprocess.run(
        [sys.executable, "-m", "jtcse_jax.encode", "--help"],
        env=os.environ | {name: "banana", "PYTHONPATH": WITHOUT_TORCH},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, name in done.stderr) == (0, True), done.stderr
