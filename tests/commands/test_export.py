"""Exported folders: what is written, and what other libraries make of it."""

import ast
import filecmp
import json
import re
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from exports import ALL_OPTIONS, SCORES, arguments, roberta_model, write_trained_run
from runs import largest_difference
from tiny_models import padded_vectors, relative_files, some_sentences, tiny_model, write_run
from transformers import AutoTokenizer

from jtcse_jax import export
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.store import exported, saved_model
from jtcse_jax.store.card import read_card

SENTENCES = some_sentences(12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir of two towers that started from scratch."""
    return write_trained_run(tmp_path_factory.mktemp("trained"), tiny_model(2))


def assert_same_folders(one: Path, other: Path) -> None:
    names = relative_files(one)
    assert names == relative_files(other)
    _, different, unread = filecmp.cmpfiles(one, other, names, shallow=False)
    assert (different, unread) == ([], [])


@pytest.mark.parametrize(("make", "num_towers"), [(roberta_model, 1), (tiny_model, 2)])
def test_export_of_an_export_is_the_same_files(tmp_path, make, num_towers):
    workdir = write_trained_run(tmp_path, make(num_towers, pooling="mean"))
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    options = ALL_OPTIONS | {"scores": str(tmp_path / "scores.json")}
    export.export(arguments(workdir, tmp_path / "once", **options))
    export.export(arguments(tmp_path / "once", tmp_path / "twice"))
    assert_same_folders(tmp_path / "once", tmp_path / "twice")
    names = relative_files(tmp_path / "once")
    assert sum(name.name == "model.safetensors" for name in names) == num_towers
    one, other = (saved_model.load(tmp_path / name) for name in ("run", "once"))
    assert largest_difference(one.params, other.params) == 0
    assert (one.bank, one.serving_length) == (other.bank, other.serving_length)
    assert one.tokenizer(SENTENCES).input_ids == other.tokenizer(SENTENCES).input_ids


def test_files_of_one_tower_and_of_two(tmp_path):
    exported.export(tiny_model(1), tmp_path / "one")
    exported.export(tiny_model(2), tmp_path / "two")
    said = {"README.md", "jtcse_card.json", "config_sentence_transformers.json", "modules.json"}
    one, two = ({path.name for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    tower = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert one == said | tower | {"1_Pooling", "sentence_bert_config.json"}
    modes = {path.stat().st_mode for path in (tmp_path / "one").iterdir() if path.is_file()}
    assert len(modes) == 1  # safetensors alone would keep the weights from other users
    assert two == said | {"tower_0", "tower_1", "sum_of_towers.py", "jtcse.json"}
    assert {path.name for path in (tmp_path / "two" / "tower_1").iterdir()} == tower


def test_copied_module_needs_nothing_of_ours(tmp_path):
    exported.export(tiny_model(2), tmp_path / "two")
    copy = (tmp_path / "two" / "sum_of_towers.py").read_text()
    assert copy == (Path(exported.__file__).parent / "sum_of_towers.py").read_text()
    imports = [node for node in ast.walk(ast.parse(copy)) if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in imports} == {
        "collections.abc",
        "huggingface_hub",
        "sentence_transformers.models",
        "transformers",
        "typing",
    }


def test_one_tower_of_an_export_is_a_model_itself(tmp_path):
    twin = tiny_model(2)
    exported.export(twin, tmp_path / "out")
    parts = [
        SentenceEncoder.load(tmp_path / "out" / f"tower_{tower}", pooling="cls", max_len=16)
        for tower in range(2)
    ]
    np.testing.assert_allclose(
        sum(part.encode(SENTENCES) for part in parts), padded_vectors(twin, SENTENCES), atol=2e-5
    )


def test_nothing_exported_names_folders_of_this_machine(run, tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    options = {"scores": str(tmp_path / "scores.json")}
    export.export(arguments(run, tmp_path / "out", **options))
    for name in relative_files(tmp_path / "out"):
        content = (tmp_path / "out" / name).read_bytes()
        for private in (str(run.parent), str(tmp_path), "someone"):
            assert private.encode() not in content, name


def test_settings_of_a_sentence_transformers_folder_are_kept(tmp_path):
    export.export(arguments(write_run(tmp_path / "run", tiny_model(1), {1: None}), tmp_path / "st"))
    folder = tmp_path / "st"
    for name in ("jtcse_card.json", "README.md"):
        (folder / name).unlink()
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {"prompts": {"query": "Q: ", "document": None}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    card = read_card(saved_model.load(folder))
    assert (card.normalize, card.prompts) == (True, {"query": "Q: ", "document": ""})
    assert card.base_models == []  # a folder is no name of the hub


def test_export_into_what_is_there_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    for output in (tmp_path / "full", tmp_path / "file"):
        with pytest.raises(UserError, match=f"--output {output} exists and is not empty"):
            exported.export(tiny_model(1), output)
        with pytest.raises(UserError, match="exists and is not empty"):
            export.export(arguments(run, output))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "full"}
    (tmp_path / "empty").mkdir()
    exported.export(tiny_model(1), tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_folder_appears_whole_whatever_was_left_before(tmp_path, monkeypatch):
    output = tmp_path / "new" / "out"
    left = tmp_path / "new" / ".out.partial"  # by a killed export
    (left / "tower_7").mkdir(parents=True)
    rename, seen = Path.rename, []

    def looking(path, target):
        if Path(target) == output:
            seen.append((output.exists(), {file.name for file in path.iterdir()}))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", looking)
    exported.export(tiny_model(2), output)
    files = {path.name for path in output.iterdir()}
    assert seen == [(False, files)] and "tower_7" not in files
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("limit", [100, 4000])
def test_disk_that_fills_leaves_nothing(tmp_path, limit):
    """A limit on the size of files is to a writer what a full disk is."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(UserError) as error:
            exported.export(tiny_model(1), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert f"--output {tmp_path / 'out'}: nothing was written: " in str(error.value)
    assert "too large" in str(error.value) and ".partial" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_output_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output .*file/out: .*Not a directory"):
        exported.export(tiny_model(1), tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": ("query: ",)}, "--prompts query: : write NAME=TEXT"),
        ({"prompts": ("=query",)}, "--prompts =query: write NAME=TEXT"),
        ({"scores": "none.json"}, "--scores none.json: no such file"),
        ({"push": "a/b/c"}, "--push a/b/c cannot name a repository"),
    ],
)
def test_wrong_arguments_are_refused_before_the_work(tmp_path, fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        export.export(arguments(tmp_path / "no model", tmp_path / "out", **fields))


def test_ensemble_is_refused(tmp_path):
    exported.export(tiny_model(1), tmp_path / "member")
    members = [{"model": "member", "weight": 0.3}, {"model": "member", "weight": 0.7}]
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": members}))
    for name in (tmp_path, tmp_path / "ensemble.json"):
        with pytest.raises(UserError, match=f"--model {name}: .*distil it"):
            export.export(arguments(name, tmp_path / "out"))


@pytest.mark.slow
def test_sum_of_towers_saved_by_sentence_transformers_opens_again(tmp_path):
    package = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    model = roberta_model(2, pooling="mean")
    exported.export(model, tmp_path / "out")
    with pytest.raises(ValueError, match="trust_remote_code"):
        package.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    theirs = package.SentenceTransformer(
        str(tmp_path / "out"), device="cpu", trust_remote_code=True
    )
    theirs.save(str(tmp_path / "saved"))
    again = package.SentenceTransformer(
        str(tmp_path / "saved"), device="cpu", trust_remote_code=True
    )
    expected = SentenceEncoder.of(model).encode(SENTENCES)
    np.testing.assert_allclose(again.encode(SENTENCES), expected, atol=1e-5)
    ours = SentenceEncoder.load(tmp_path / "saved")
    np.testing.assert_allclose(ours.encode(SENTENCES), expected, atol=1e-5)


def test_exporting_needs_no_torch(tmp_path, monkeypatch):
    for name in ("torch", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    exported.export(tiny_model(2), tmp_path / "out")
    assert (tmp_path / "out" / "sum_of_towers.py").is_file()


def test_plain_truncation_of_the_tokenizer_cuts_where_we_do(tmp_path):
    model = tiny_model(2, serving_length=9)
    model.tokenizer.init_kwargs["max_length"] = 128  # how it was once called
    exported.export(model, tmp_path / "out")
    for tower in ("tower_0", "tower_1"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / tower)
        assert len(tokenizer("cat " * 50, truncation=True)["input_ids"]) == 9
        settings = json.loads((tmp_path / "out" / tower / "tokenizer_config.json").read_text())
        assert settings["model_max_length"] == 9 and "max_length" not in settings
    assert model.tokenizer.model_max_length > 1000  # ours is left as it was
