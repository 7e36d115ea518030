import errno
import os
import socket
import subprocess
import sys
import threading

import jax
import pytest
from processes import declared_cluster, end, start_python

from jtcse_jax import preflight


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    monkeypatch.setattr(preflight, "REDUCED", preflight.MIB)
    monkeypatch.setattr(preflight, "MOST_WRITTEN", 2 * preflight.BLOCK)


def test_one_process_on_all_its_devices(command, capsys, tmp_path):
    command(preflight, "--workdir", tmp_path)
    said = capsys.readouterr().out
    assert socket.gethostname() in said and "8 x cpu" in said and "1 process(es)" in said
    assert "all-reduce of 1 MiB over 8 devices: " in said and "GB/s per device" in said
    assert not list(tmp_path.iterdir())


def test_what_is_found(tmp_path):
    [report] = preflight.preflight(str(tmp_path / "not" / "there yet"))
    assert report.problem == "" and not list(tmp_path.iterdir())
    status = os.statvfs(tmp_path)
    total = status.f_blocks * status.f_frsize
    assert 0 < report.free < total
    assert min(report.write, report.read, report.reduced) > 0
    assert report.memory > 1e8


def test_a_wrong_sum(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(jax.lax, "psum", jax.lax.pmax)
    assert "all-reduce over all devices gave a wrong sum on" in refused(
        preflight, "--workdir", tmp_path
    )


def test_a_workdir_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").touch()
    said = refused(preflight, "--workdir", tmp_path / "file" / "run")
    assert f"the workdir {tmp_path}/file/run cannot be written (Not a directory)" in said


def test_a_full_disk(refused, monkeypatch, tmp_path):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "(No space left on device): free some space" in refused(preflight, "--workdir", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_forgets(refused, monkeypatch, tmp_path):
    """Each block that is synced is overwritten behind our back."""
    monkeypatch.setattr(os, "fsync", lambda file: os.pwrite(file, b"\0" * 4096, 0))
    assert "other bytes than were written" in refused(preflight, "--workdir", tmp_path)


def test_a_url_is_no_workdir(refused):
    assert "mount the bucket" in refused(preflight, "--workdir", "gs://bucket/run")


def test_a_hanging_collective_ends_the_process(monkeypatch, capsys, tmp_path):
    ended = threading.Event()
    statuses = []

    def end(status):
        statuses.append(status)
        ended.set()

    def hang():
        assert ended.wait(60)
        return {"reduced": 1.0}

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(preflight, "_all_reduce", hang)
    monkeypatch.setattr(preflight, "REDUCING", 0.01)
    preflight.preflight(str(tmp_path))
    assert statuses == [2]
    assert "waited 0.01 s for the others" in capsys.readouterr().err


def test_a_hanging_disk_is_not_taken_for_the_network(monkeypatch, capsys, tmp_path):
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(preflight, "_disk", lambda folder: ended.wait(60) and {})
    monkeypatch.setattr(preflight, "WRITING", 0.01)
    preflight.preflight(str(tmp_path))
    said = capsys.readouterr().err
    assert f"waited 0.01 s for the disk of the workdir {tmp_path}" in said and "others" not in said


@pytest.mark.slow
def test_two_processes_that_share_no_workdir(tmp_path):
    """Both report, and one of them says what is wrong."""
    processes = []
    for rank, declared in enumerate(declared_cluster(2)):
        (tmp_path / str(rank)).mkdir()
        arguments = ["-m", "jtcse_jax.preflight", "--workdir", str(tmp_path / str(rank))]
        two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        processes.append(start_python(*arguments, **declared, **two))
    (status, out, said), (other, nothing, noise) = map(end, processes)
    assert 2 in (status, other), said + noise
    assert 0 not in (status, other)
    assert out.count("2 x cpu") == 2 and "over 4 devices" in out and "2 process(es)" in out
    error = f"error: process 1 on {socket.gethostname()}: the workdir {tmp_path}/1 is not"
    assert (said + noise).count(error) == (said + noise).count("error: ") == 1
    assert "GB" not in nothing
    assert not list(tmp_path.glob("*/*"))


def test_what_it_does_not_need_is_not_imported():
    # transformers alone takes seconds, and with torch installed as many again.
    imported = (
        "import sys, jtcse_jax.preflight; print({'transformers', 'orbax'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", imported]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "set()"
