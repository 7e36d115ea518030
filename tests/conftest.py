"""Every test runs on 8 simulated CPU devices, without network."""

import contextlib
import gc
import os
import resource
import subprocess
import sys
import tempfile

import pytest
from processes import QUICK_COMPILATION

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# Compiling takes most of the time of these tests: optimise less, and compile each step once.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # On a busy machine a device may wait long for the others; after 40 s XLA would abort.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        QUICK_COMPILATION,
    ]
)
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit the folder
    _compiled = tempfile.TemporaryDirectory(prefix="jtcse-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Tracing makes millions of small objects, few of them garbage: look for garbage less often.
gc.set_threshold(100_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def tiny_towers_do_not_count_as_collapsed():
    """Random towers of 16 numbers give all sentences nearly the same vector."""
    from jtcse_jax.evaluation import development

    development.COLLAPSED = 2.0


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The config of a finished run of ten steps on one device; tests only read its workdir."""
    import jax  # here: what is set above must come first
    from runs import tiny_config

    from jtcse_jax.training.trainer import train

    config = tiny_config(tmp_path_factory.mktemp("finished"))
    train(config, devices=jax.devices()[:1])
    return config


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules whose time goes into compiling: without most of XLA's optimizations."""
    import jax  # here: what is set above must come first

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def command(monkeypatch):
    """Runs the `main` of a module with arguments, as a shell would."""

    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()

    return call


@pytest.fixture
def refused(command, capsys):
    """Runs a command that must end with status 2, and returns what it said: one line."""

    def call(module, *arguments):
        with pytest.raises(SystemExit) as exit:
            command(module, *arguments)
        assert exit.value.code == 2
        said = capsys.readouterr().err.removesuffix("\n")
        assert said.startswith("error: ") or said.startswith("model: ")
        assert "\n" not in said.split("error: ", 1)[1]
        return said

    return call


@pytest.fixture
def largest_files():
    """`with largest_files(SIZE)`: to who writes more into a file it is as a full disk."""

    @contextlib.contextmanager
    def limit(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 900 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
