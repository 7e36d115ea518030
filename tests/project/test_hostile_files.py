"""Files that would fill the memory, lead out of their folder or never end."""

import contextlib
import gzip
import json
import lzma
import os
import shutil
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import tiny_model, write_run

from jtcse_jax.data.sources import open_source
from jtcse_jax.errors import UserError
from jtcse_jax.store import ensemble, manifest, saved_model
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.exported import export

BOMB = 2**25  # bytes unpacked; a reader may hold a small part of them


def bomb(path: Path, opener, content: bytes) -> Path:
    with opener(path, "wb") as file:
        for _ in range(BOMB // len(content)):
            file.write(content)
    return path


@contextlib.contextmanager
def at_most(memory: float):
    """Fails if Python's objects ever take more bytes than this inside."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < memory


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors.index.json", "tokenizer.json", "modules.json"],
)
def test_endless_brackets_are_refused(folder, name):
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(DEEP)
    with pytest.raises(UserError):
        saved_model.load(folder)


@pytest.mark.parametrize(
    ("name", "opener"),
    [("a.txt", open), ("a.gz", gzip.open), ("a.xz", lzma.open), ("a.tsv.gz", gzip.open)],
)
@pytest.mark.parametrize("byte", [b"\0", b"\t"])
def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path, name, opener, byte):
    path = bomb(tmp_path / name, opener, byte * 2**16)
    with at_most(BOMB / 2), pytest.raises(UserError, match=rf"{name}:1: .*longer than"):
        list(open_source(str(path)).read())


@pytest.mark.parametrize(("name", "opener"), [("a.gz", gzip.open), ("a.xz", lzma.open)])
def test_many_lines_are_never_held_together(tmp_path, name, opener):
    path = bomb(tmp_path / name, opener, b" " * 1023 + b"\n")
    with opener(path, "ab") as file:
        file.write(b"the end")
    source = open_source(str(path))
    with at_most(BOMB / 2):
        assert list(source.read()) == ["the end"]
    assert source.blank == BOMB // 1024


@pytest.fixture
def folder(tmp_path):
    """An exported folder of one tower, in a folder of its own."""
    export(tiny_model(1), tmp_path / "own" / "model")
    return tmp_path / "own" / "model"


def shard(folder: Path, name: str) -> None:
    """Makes the folder's weights one shard that its index calls `name`."""
    tensors = load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_lie_in_their_folder(tmp_path, folder):
    """Each file that is named is whole and fits: nothing but its place speaks against it."""
    outside = tmp_path / "outside.safetensors"
    for name in ("../../outside.safetensors", str(outside), "link.safetensors", "link/../x/y"):
        copy = tmp_path / "own" / "copy"
        shutil.copytree(folder, copy)
        shard(copy, name)
        shutil.move(copy / "model.safetensors", outside)
        (copy / "link.safetensors").symlink_to(outside)
        with pytest.raises(UserError, match=r"index.json: .* is not a file of this folder"):
            saved_model.load(copy)
        shutil.rmtree(copy)


def test_the_hubs_own_cache_is_made_of_links(tmp_path, folder):
    snapshot, blobs = tmp_path / "models--a" / "snapshots" / "1", tmp_path / "models--a" / "blobs"
    blobs.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    shard(snapshot, "model-1.safetensors")
    shutil.move(snapshot / "model.safetensors", blobs / "0123")
    (snapshot / "model-1.safetensors").symlink_to("../../blobs/0123")
    assert saved_model.load(snapshot).bank.num_towers == 1


@pytest.mark.parametrize("weight_map", [[], "x", 3, {"a": 1}, {"a": None}, {"a": ["b"]}, {}])
def test_an_index_of_another_shape_is_refused(folder, weight_map):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index.json: no weight_map"):
        saved_model.load(folder)


def test_towers_lie_in_their_folder(tmp_path):
    export(tiny_model(2), tmp_path / "two")
    shutil.copytree(tmp_path / "two" / "tower_1", tmp_path / "outside")
    (tmp_path / "two" / "link").symlink_to(tmp_path / "outside")
    description = json.loads((tmp_path / "two" / "jtcse.json").read_text())
    for name in ("../outside", str(tmp_path / "outside"), "link", 3, None):
        changed = description | {"towers": ["tower_0", name]}
        (tmp_path / "two" / "jtcse.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match="jtcse.json: .* is not a folder inside it"):
            saved_model.load(tmp_path / "two")
    changed = description | {"towers": ["tower_0"] * 1000}
    (tmp_path / "two" / "jtcse.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"towers = .*: name each once"):
        saved_model.load(tmp_path / "two")


@pytest.mark.parametrize("number", ["²", "1" * 5000, "-1", "x", ""])
def test_what_is_no_number_names_no_tower(number):
    name = f"model#{number}"
    assert saved_model.split_name(name) == (name, None)


def test_members_lie_below_their_description(tmp_path, folder):
    export(tiny_model(1), tmp_path / "outside")
    (folder.parent / "link").symlink_to(tmp_path / "outside")
    path = folder.parent / "ensemble.json"

    def load(name):
        path.write_text(json.dumps({"members": [{"model": name, "weight": 1}]}))
        return ensemble.load_members(path)

    assert len(load("model")) == len(load(str(folder))) == len(load("model#0")) == 1
    for name in ("../outside", str(tmp_path / "outside"), "link", "model/../../outside", "link#0"):
        with pytest.raises(UserError, match="ensemble.json: member 0: .* is outside"):
            load(name)


def test_members_of_packages_lie_in_their_package(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "__init__.py").touch()
    export(tiny_model(1), tmp_path / "outside")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="package:weights/../outside: .*no folder"):
        saved_model.load("package:weights/../outside")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("num_hidden_layers", size) for size in (10**9, 10**30)),
        *(("hidden_size", size) for size in (2**40, 10**30)),
        *(("vocab_size", size) for size in (2**62, 10**30)),
        *(("type_vocab_size", size) for size in (10**9, 10**30)),
        ("layer_norm_eps", float("inf")),
        ("layer_norm_eps", float("nan")),
        ("model_type", []),
        ("model_type", {}),
    ],
)
def test_a_config_cannot_ask_for_the_whole_memory(folder, field, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(UserError, match=f"config.json: {field} = "):
        saved_model.load(folder)


def test_a_pooler_is_drawn_only_for_weights_that_fit(folder):
    """A config of wide layers over narrow weights: drawing first would take 64 GiB."""
    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith("pooler.")}
    save_file(kept, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 2**17}))
    with pytest.raises(UserError, match="tensors do not fit"):
        saved_model.load(folder)


@pytest.mark.parametrize("garbage", ["null", "[]", '"x"', '{"model": 1}', "\0\0", "{" * 9])
def test_a_tokenizer_of_garbage_is_refused(folder, garbage):
    (folder / "tokenizer.json").write_text(garbage)
    with pytest.raises(UserError, match="cannot load its tokenizer") as error:
        saved_model.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["fifo", "endless", "loop", "folder"])
def test_a_step_holds_ordinary_files_alone(tmp_path, kind):
    """A pipe would wait for ever, a link to a device would be hashed for ever."""
    workdir = write_run(tmp_path / "run", tiny_model(1), {1: 0.5})
    step = workdir / "checkpoints" / "1"
    contents = manifest.read(step)
    odd = step / "params" / "odd"
    {
        "fifo": lambda: os.mkfifo(odd),
        "endless": lambda: odd.symlink_to("/dev/zero"),
        "loop": lambda: odd.symlink_to(odd),
        "folder": lambda: odd.symlink_to(step),
    }[kind]()
    contents["files"]["params/odd"] = [0, "0" * 64]
    body = contents | {"digest": manifest._digest(contents)}
    (step / "manifest.json").write_text(json.dumps(body))
    assert "params/odd is not an ordinary file" in manifest.problem(step)
    with pytest.raises(UserError, match="no good checkpoint|damaged"):
        saved_model.load(workdir)


def test_garbage_under_a_manifest_that_fits_is_one_sentence(tmp_path):
    """Anyone can make a manifest; what orbax then makes of the files is of many types."""
    state = {"params": {"w": np.ones(3, np.float32)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    shape = {"w": jax.ShapeDtypeStruct((3,), np.float32)}
    damaged = 0
    for path in sorted((tmp_path / "1").rglob("*")):
        if not path.is_file() or path.name in manifest.UNHASHED:
            continue
        whole, contents = path.read_bytes(), manifest.read(tmp_path / "1")
        path.write_bytes(b"\x80\x04garbage")
        del contents["files"]
        manifest.write(tmp_path / "1", contents)
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            try:
                checkpoints.restore(params=shape)
            except UserError as error:
                assert "step 1 in" in str(error) and "cannot be opened" in str(error)
                damaged += 1
        path.write_bytes(whole)
    assert damaged >= 2
