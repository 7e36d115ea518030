"""Damaged and hostile contents of files, as strategies of hypothesis."""

import copy
import json
import math
from typing import Any

from hypothesis import strategies as st

Files = dict[str, bytes | None]  # by path below the target's folder; None: no such file

ODD = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        3,
        2**16,
        2**31,
        2**63,
        10**30,
        10**400,
        0.0,
        0.5,
        1e308,
        math.nan,
    ),
    *(
        math.inf,
        "",
        "x",
        "cls",
        "mean",
        ".",
        "..",
        "../x",
        "/",
        "~nobody/x",
        "~no one/x",
        "\0",
        "²",
        "\ud800",
    ),
    *([], {}, [[]], ["x"], [None], {"a": 1}, [1, "x"], "x#0", "x#²", "package:x/..", "x" * 300),
]
odd = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=5,
)
any_bytes = st.binary(max_size=200)


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """A file with bytes changed, cut off or put in."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["change", "cut", "put in", "repeat"]))
        if what == "change":
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif what == "cut":
            del data[place : place + draw(st.integers(1, max(1, len(data))))]
        elif what == "put in":
            data[place:place] = draw(st.binary(max_size=9))
        else:
            data[place:place] = data[:place][-draw(st.integers(1, 20)) :]
    return bytes(data)


@st.composite
def changed(draw, content: Any) -> Any:
    """A JSON value with some of its parts replaced or gone."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(0, 3))):
        parent, key = None, None
        node = content
        while isinstance(node, dict | list) and node and draw(st.integers(0, 3)):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            parent, key = node, draw(st.sampled_from(keys))
            node = parent[key]
        if parent is None:
            continue
        if isinstance(parent, dict) and draw(st.integers(0, 4)) == 0:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(draw(odd))
    return content


def json_bytes(content: Any) -> st.SearchStrategy[bytes]:
    """A JSON file whose content has changed, or whose bytes have."""
    text = json.dumps(content).encode()
    return (
        changed(content).map(lambda value: json.dumps(value).encode())
        | damaged(text)
        | st.sampled_from([b"", b"null", b"[" * 9, b"1" * 5000])
    )


def any_of(files: dict[str, tuple[bytes, st.SearchStrategy]]) -> st.SearchStrategy[Files]:
    """Each file as it is, changed or gone: for readers that write into them too."""
    return st.fixed_dictionaries(
        {name: st.just(data) | other | st.none() for name, (data, other) in files.items()}
    )


def one_or_two(files: dict[str, st.SearchStrategy]) -> st.SearchStrategy[Files]:
    """Some of the files changed, or gone; the others stay as they are."""

    @st.composite
    def draw_files(draw) -> Files:
        names = draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=2, unique=True))
        return {name: draw(st.none() | files[name] | files[name]) for name in names}

    return draw_files()


def safetensors(data: bytes) -> st.SearchStrategy[bytes]:
    """A file of tensors with another header, or other bytes."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]

    def join(header: Any) -> bytes:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body

    return changed(header).map(join) | damaged(data[: 8 + size + 40]) | damaged(data)
