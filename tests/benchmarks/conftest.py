"""What the benchmarks' tests share."""

import multiprocessing
import os
from collections.abc import Callable

import pytest
from processes import FORKS, Forked


class Contenders:
    """Takes the place of multiprocessing's context: forks the processes of a race."""

    Pipe = FORKS.Pipe

    @staticmethod
    def Process(target: Callable, args: tuple, daemon: bool) -> Forked:  # noqa: N802
        assert daemon
        return Forked(dict(os.environ), target=target, args=args)


@pytest.fixture
def forked_contenders(monkeypatch):
    """For races without torch, which then start at once."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: Contenders)
