"""No file that a user is given runs code, leaves its folder, fills the memory or learns a secret.

Every payload here would leave a mark in the file system; a test proves that it can.
"""

import ast
import dataclasses
import io
import json
import os
import pickle
import py_compile
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import ROOT
from runs import tiny_config
from tiny_models import tiny_model, write_run

from jtcse_jax import encode, evaluate, export
from jtcse_jax.config_file import load_config_file
from jtcse_jax.data.sources import open_source
from jtcse_jax.encoding.vector_file import VectorFile
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.foreign import ForeignEncoder
from jtcse_jax.evaluation.sts_data import load_pairs
from jtcse_jax.evaluation.sts_suite import read_scores
from jtcse_jax.evaluation.zero_shot_tasks import load_tasks
from jtcse_jax.report import __main__ as report
from jtcse_jax.store import hf_tokenizer, saved_model, sum_of_towers
from jtcse_jax.store.ensemble import load_members
from jtcse_jax.store.exported import export as write_export
from jtcse_jax.store.manifest import UNHASHED
from jtcse_jax.training.trainer import train

# Translation runs on torch; a module of sentence-transformers is written in it; the encoder hands
# a finished array over on request.
TORCH = {"back_translation.py", "sum_of_towers.py", "encoder.py", "outputs.py"}


def imported(tree: ast.AST) -> set[str]:
    """The packages that a module imports, by statement or by `import_module("NAME")`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    return {name.split(".")[0] for name in names}


def dangers(tree: ast.AST) -> list[str]:
    """What ruff's rules do not find: options that let a file run code."""
    return [
        f"passes {keyword.arg}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in ("allow_pickle", "trust_remote_code")
        and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]


def test_no_module_lets_a_file_run_code_or_needs_torch():
    """The dangerous calls themselves are ruff's rules S and TID251."""
    for folder in ("jtcse_jax", "benchmarks", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            assert not dangers(tree), path
            allowed = folder == "benchmarks" or path.name in TORCH
            assert allowed or "torch" not in imported(tree), path


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("import pickle\n\npickle.loads(line)\n", "S301"),
        ("from joblib import load\n", "TID251"),
        ("import marshal\n\nmarshal.loads(line)\n", "S302"),
        ("import subprocess\n\nsubprocess.run(line, shell=True)\n", "S602"),
        ("import os\n\nos.system(line)\n", "S605"),
        ("eval(line)\n", "S307"),
        ("from runpy import run_path\n\nrun_path(line)\n", "TID251"),
    ],
)
def test_the_linter_finds_a_dangerous_call(text, rule):
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise"]
    checked = subprocess.run(
        [*command, "--stdin-filename", "jtcse_jax/new.py", "-"],
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
    )
    assert f" {rule} " in checked.stdout, checked.stdout


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("np.load(path, allow_pickle=True)", "passes allow_pickle"),
        ("f(trust_remote_code=options.trust)", "passes trust_remote_code"),
    ],
)
def test_an_option_that_runs_code_is_found(text, found):
    assert dangers(ast.parse(text)) == [found]


def test_torch_is_only_handed_an_array_by_the_encoder():
    tree = ast.parse((ROOT / "jtcse_jax/encoding/outputs.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "torch"
    }
    assert used == {"from_numpy"}


def test_the_module_in_an_exported_folder_reads_at_a_glance(tmp_path):
    write_export(tiny_model(2), tmp_path / "two")
    (code,) = (tmp_path / "two").rglob("*.py")
    assert code.read_bytes() == Path(sum_of_towers.__file__).read_bytes()
    assert len(code.read_text().splitlines()) < 150
    tree = ast.parse(code.read_text())
    assert imported(tree) == {
        *("json", "os", "collections", "typing"),
        *("torch", "huggingface_hub", "transformers", "sentence_transformers"),
    }
    assert not dangers(tree)


class Payload:
    """Unpickled, it makes the file `mark`."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """Where a payload would leave its mark; that it has not is checked after the test."""
    mark = tmp_path / "executed"
    yield mark
    assert not mark.exists()


@pytest.fixture
def folder(tmp_path):
    """An exported folder of one tower."""
    write_export(tiny_model(1), tmp_path / "model")
    return tmp_path / "model"


def pickles(mark: Path) -> dict[str, bytes]:
    """The payload in every wrapping that some library would open."""
    array = np.empty(1, object)
    array[0] = Payload(mark)
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, array, allow_pickle=True)
    np.savez(npz, array)
    wrapped = {"npy": npy.getvalue(), "npz": npz.getvalue()}
    return wrapped | {f"pickle {p}": pickle.dumps(Payload(mark), p) for p in (0, 2, 5)}


WRAPPINGS = ("npy", "npz", "pickle 0", "pickle 2", "pickle 5")


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_the_payload_works(tmp_path, wrapping):
    data = pickles(tmp_path / "executed")[wrapping]
    if wrapping.startswith("pickle"):
        pickle.loads(data)
    else:
        loaded = np.load(io.BytesIO(data), allow_pickle=True)
        loaded if wrapping == "npy" else loaded["arr_0"]
    assert (tmp_path / "executed").is_dir()


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_pickle_as_any_file_of_a_model_is_refused(tmp_path, folder, mark, wrapping):
    data = pickles(mark)[wrapping]
    for name in ("model.safetensors", "config.json", "modules.json", "tokenizer.json"):
        copy = tmp_path / f"bad {name}"
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(data)
        with pytest.raises(UserError, match=f"bad {name}"):
            saved_model.load(copy)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(UserError, match="only pytorch_model.bin, a pickle"):
        saved_model.load(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"pooler.dense.bias": "pytorch_model.bin"}}))
    with pytest.raises(UserError, match="pytorch_model.bin"):
        saved_model.load(folder)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_pickle_as_any_other_file_is_refused(tmp_path, folder, mark, wrapping):
    path = tmp_path / "input.json"
    path.write_bytes(pickles(mark)[wrapping])
    for read in (load_pairs, load_config_file, load_members, read_scores, load_tasks):
        with pytest.raises(UserError, match="input.json"):
            read(path)
    if wrapping != "pickle 0":  # which is text
        with pytest.raises(UserError, match="is not UTF-8"):
            list(open_source(str(path)).read())


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_pickle_as_the_settings_of_unfinished_vectors_is_refused(tmp_path, mark, wrapping):
    VectorFile(tmp_path / "out.npy", 9, 3, 4, {})
    (tmp_path / "out.npy.partial" / "settings.json").write_bytes(pickles(mark)[wrapping])
    with pytest.raises(UserError, match="settings.json is not valid JSON"):
        VectorFile(tmp_path / "out.npy", 9, 3, 4, {})


def test_a_pickle_in_a_checkpoint_is_refused(tmp_path, mark):
    workdir = write_run(tmp_path / "run", tiny_model(1), {1: 0.5})
    for path in [path for path in (workdir / "checkpoints" / "1").rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        path.write_bytes(pickle.dumps(Payload(mark)))
        if path.name in UNHASHED - {"manifest.json"} and path.parent.name == "1":
            saved_model.load(workdir)  # nothing is read from it
        else:
            with pytest.raises(UserError, match="no good checkpoint|damaged"):
                saved_model.load(workdir)
        path.write_bytes(whole)


def code_in(folder: Path, mark: Path) -> None:
    """Python files of every name that a library may look for, each of which leaves the mark."""
    names = ("configuration_x", "modeling_x", "tokenization_x", "sum_of_towers", "config")
    for name in (*names, "conftest", "sitecustomize", "__init__", "__main__"):
        (folder / f"{name}.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")


def rewrite(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_code_in_a_model_folder_is_never_run(tmp_path, folder, mark, monkeypatch):
    """Neither by our loaders nor, where somebody would say yes to a question, by transformers."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    code_in(folder, mark)
    rewrite(folder / "config.json", auto_map={"AutoConfig": "configuration_x.X"})
    assert saved_model.load(folder).bank.num_towers == 1
    maps = {"AutoTokenizer": [None, "tokenization_x.X"]}
    rewrite(folder / "tokenizer_config.json", auto_map=maps, tokenizer_class="X")
    assert saved_model.load(folder).bank.num_towers == 1
    rewrite(folder / "config.json", model_type="x")
    with pytest.raises(UserError, match="model_type = 'x'"):
        saved_model.load(folder)
    with pytest.raises(UserError, match="cannot load its tokenizer .*custom code"):
        hf_tokenizer.load_tokenizer(folder)


def test_code_in_a_workdir_or_an_export_of_two_is_never_run(tmp_path, mark):
    write_export(tiny_model(2), tmp_path / "two")
    workdir = write_run(tmp_path / "run", tiny_model(2), {1: 0.5})
    for path in (tmp_path / "two", tmp_path / "two" / "tower_0", workdir, workdir / "tokenizer"):
        code_in(path, mark)
    for path in (tmp_path / "two", workdir):
        assert saved_model.load(path).bank.num_towers == 2


def test_sentence_transformers_is_not_told_to_trust_a_folder(tmp_path, folder, mark):
    pytest.importorskip("sentence_transformers", reason="evaluates a model of that library")
    code_in(folder, mark)
    module = {"idx": 0, "name": "0", "path": "", "type": "sum_of_towers.SumOfTowers"}
    (folder / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(UserError, match="sentence-transformers cannot load it"):
        ForeignEncoder(f"sentence-transformers:{folder}")


def test_a_config_file_is_run_and_that_is_the_only_file(tmp_path):
    """By design: it is trusted like the command line. The linter bans other `run_path`s."""
    code = f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n"
    (tmp_path / "config.py").write_text(
        code + "from jtcse_jax.config import Config as C\nconfig = C()\n"
    )
    load_config_file(tmp_path / "config.py")
    assert (tmp_path / "executed").is_dir()


def test_a_compiled_program_is_no_config_file(tmp_path, mark):
    (tmp_path / "code.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    py_compile.compile(tmp_path / "code.py", cfile=tmp_path / "config.py")
    with zipfile.ZipFile(tmp_path / "zip.py", "w") as archive:
        archive.write(tmp_path / "code.py", "__main__.py")
    for name in ("config.py", "zip.py"):
        with pytest.raises(UserError, match=f"{name}: .*not Python text"):
            load_config_file(tmp_path / name)


SECRETS = {
    name: f"planted-{number}-secret"
    for number, name in enumerate(
        ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GH_TOKEN")
    )
}


@pytest.mark.slow
def test_secrets_of_the_environment_are_written_nowhere(
    tmp_path, monkeypatch, command, capfd, caplog
):
    """A run, its vectors, scores, report and export: every file of them, and all that was said."""
    caplog.set_level("DEBUG")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    config = dataclasses.replace(tiny_config(tmp_path), max_steps=4)
    train(config, devices=jax.devices()[:1])
    model = ("--model", config.workdir)
    command(encode, *model, "--input", config.data.source, "--output", tmp_path / "out.npy")
    command(evaluate, *model, "--sts", config.data.dev, "--output", tmp_path / "scores.json")
    scores = ("--scores", tmp_path / "scores.json")
    command(export, *model, "--output", tmp_path / "exported", *scores)
    command(report, config.workdir, "--output", tmp_path / "report.html")
    said = "".join(capfd.readouterr()) + caplog.text
    assert "step" in said
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in written}
    assert {"train_config.json", "environment.jsonl", "README.md", "report.html"} <= names
    for secret in SECRETS.values():
        assert secret not in said
        assert [path for path in written if secret.encode() in path.read_bytes()] == []
