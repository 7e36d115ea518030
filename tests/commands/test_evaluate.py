"""`python -m jtcse_jax.evaluate`: scores of one model and of several."""

import dataclasses
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from tiny_models import tiny_model, write_run, write_senteval

from jtcse_jax import evaluate
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation import diagnostics_suite, mteb_suite, transfer_suite
from jtcse_jax.evaluation.scored_model import load_model
from jtcse_jax.evaluation.sts_data import load_sts
from jtcse_jax.store import exported
from jtcse_jax.store.card import read_card

TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir of two towers; step 2 is the best, step 3 the newest."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    return write_run(folder, tiny_model(2), {2: 0.6, 3: 0.4})


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
    for task in load_sts(sts)[0]:
        one, two = (encoder.encode(list(side)) for side in (task.pairs.first, task.pairs.second))
        cosines = [
            x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(one, two, strict=True)
        ]
        expected[task.name] = spearmanr(cosines, task.pairs.gold).statistic
        if task.name == "STS-B":
            linear = pearsonr(cosines, task.pairs.gold).statistic
    assert tuple(expected) == TASKS and abs(expected["STS-B"]) < 0.95
    expected["average"] = np.mean(list(expected.values()))
    assert result["sts"]["spearman"] == pytest.approx(
        {name: 100 * rho for name, rho in expected.items()}, abs=0.006
    )
    assert result["sts"]["pearson"]["STS-B"] == pytest.approx(100 * linear, abs=0.006)


def test_evaluate_says_what_the_scores_depend_on(evaluated, run):
    _, result = evaluated
    assert result["model"] == f"{run}, step 2 (best by dev score)"
    (member,) = result["members"]
    assert (member["weight"], member["towers"], member["pooling"]) == (1, 2, "cls")
    assert (member["serving_length"], member["compute_dtype"]) == (60, "float32")
    assert result["sts"]["pairs"]["STS-B"] == 25 and result["sts"]["pairs"]["STS12"] == 10
    assert result["sts"]["pairs"]["average"] == sum(result["sts"]["pairs"][task] for task in TASKS)
    assert {"jtcse_jax", "jax", "transformers", "tokenizers"} <= result["environment"].keys()


def test_evaluate_prints_a_table_and_the_same_json(evaluated, command, run, capsys):
    sts, result = evaluated
    command(evaluate, "--model", run, "--sts", sts, "--max-len", 60)
    out = capsys.readouterr().out
    table, brace, rest = out.partition("\n{\n")
    again = json.loads(brace + rest)
    again["sts"]["seconds"] = result["sts"]["seconds"]
    assert again == result
    for name, score in result["sts"]["spearman"].items():
        assert name in table and f"{score:.2f}" in table
        for bound in result["sts"]["interval"][name]:
            assert f"{bound:.2f}" in table
    assert "serving length 60" in " ".join(table.split())


def test_cut_sentences_are_counted_for_each_suite(command, run, tmp_path, capsys):
    long = ["the " * 8, "the " * 9, "the old river " * 4]  # 10 tokens or more
    pairs = [(long[0], "the cat"), ("the " * 7, long[1]), (long[2], long[0]), ("a", "b")]
    lines = [f"{one}\t{two}\t{gold}\n" for gold, (one, two) in enumerate(pairs)]
    (tmp_path / "own.tsv").write_text("".join(lines))
    own = ("--sts", tmp_path / "own.tsv", "--dev", tmp_path / "own.tsv")
    for length, count in ((9, 3), (16, 0)):
        command(evaluate, "--model", run, "--max-len", length, *own)
        table, brace, rest = capsys.readouterr().out.partition("\n{\n")
        result = json.loads(brace + rest)
        for suite in ("sts", "diagnostics"):
            assert result[suite]["cut_sentences"] == count
        line = f"sentences cut at the serving length: {count}"
        assert " ".join(table.split()).count(line) == 2


def test_unknown_characters_are_counted_for_each_suite(command, run, tmp_path, capsys):
    (tmp_path / "own.tsv").write_text("the ก\tthe cat\t1\nthe cat\tค\t2\na\tthe river\t3\n")
    command(evaluate, "--model", run, "--sts", tmp_path / "own.tsv")
    table, brace, rest = capsys.readouterr().out.partition("\n{\n")
    result = json.loads(brace + rest)["sts"]
    texts = {"the ก", "the cat", "ค", "a", "the river"}
    assert result["unknown_characters"] == 2
    assert result["characters"] == sum(map(len, texts))
    assert "[UNK] to the tokenizer: 8.70 %" in " ".join(table.split())


def test_subsets_stand_beside_the_whole(evaluated, run):
    sts, result = evaluated
    subsets = result["sts"]["subsets"]
    tasks = {task.name: task for task in load_sts(sts)[0]}
    assert subsets.keys() == {name for name, task in tasks.items() if len(task.subsets) > 1}
    encoder = SentenceEncoder.load(run, max_len=60)
    for name, pairs in tasks["STS16"].subsets.items():
        one, two = (encoder.encode(list(side)) for side in (pairs.first, pairs.second))
        cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
        rho = spearmanr(cosines, pairs.gold).statistic
        assert subsets["STS16"]["spearman"][name] == pytest.approx(100 * rho, abs=0.006)


def test_evaluate_prints_names_as_they_are(evaluated, command, tmp_path, capsys):
    sts, _ = evaluated
    folder = tmp_path / "lr[/x]"
    exported.export(tiny_model(1), folder)
    command(evaluate, "--model", folder, "--sts", sts)
    assert "lr[/x]" in capsys.readouterr().out.partition("\n{\n")[0].replace("\n", "")


def test_evaluate_without_the_tasks_is_one_line(refused, run, tmp_path):
    said = refused(evaluate, "--model", run, "--sts", tmp_path)
    assert f"{tmp_path}: no STS task in SentEval's layout" in said
    assert "nothing to score: give --sts" in refused(evaluate, "--model", run)
    assert "--suite sts needs --sts" in refused(evaluate, "--model", run, "--suite", "sts")


def test_a_missing_task_is_named_and_the_others_run(command, run, tmp_path, capsys):
    sts = write_senteval(tmp_path / "downstream")
    (sts / "STS14-en-test" / "STS.gs.images.txt").unlink()
    command(evaluate, "--model", run, "--sts", sts, "--output", tmp_path / "scores.json")
    assert "STS14 is skipped and not part of the average" in capsys.readouterr().err
    found = json.loads((tmp_path / "scores.json").read_text())["sts"]
    assert list(found["missing"]) == ["STS14"]
    assert list(found["spearman"]) == [task for task in TASKS if task != "STS14"] + ["average"]


def test_equal_vectors_are_reported_to_rank_nothing(command, tmp_path, capsys):
    model = tiny_model(1)
    constant = jax.tree.map(np.zeros_like, model.params)
    exported.export(dataclasses.replace(model, params=constant), tmp_path / "constant")
    pairs = tmp_path / "own.tsv"
    pairs.write_text("the cat\ta dog\t1\nthe dog\ta cat\t2\na cat\ta cat\t5\n")
    command(evaluate, "--model", tmp_path / "constant", "--sts", pairs)
    said = capsys.readouterr()
    assert "own: all cosines are equal: the correlation is undefined" in said.err
    assert "nan" not in said.out.lower() and "no correlation is defined" in said.out


def test_models_are_compared_with_the_first(evaluated, command, run, tmp_path, capsys):
    sts, _ = evaluated
    names = [tmp_path / str(seed) for seed in range(2)]
    for seed, name in enumerate(names):
        model = tiny_model(1)
        rolled = jax.tree.map(lambda leaf, seed=seed: np.roll(leaf, seed), model.params)
        exported.export(dataclasses.replace(model, params=rolled), name)
    output = tmp_path / "scores.json"
    both = "tiny"
    seeds = "tiny=" + ",".join(map(str, names))
    command(
        evaluate, "--model", run, "--compare", seeds, names[0], "--sts", sts, "--output", output
    )
    result = json.loads(output.read_text())
    assert [one["method"] for one in result["models"]] == [str(run), both, both, str(names[0])]
    first, *seeds, _ = [one["sts"]["spearman"] for one in result["models"]]
    assert result["differences"].keys() == {both, str(names[0])}
    for task, found in result["differences"][both].items():
        mean = np.mean([one[task] for one in seeds])
        assert found["mean"] == pytest.approx(mean - first[task], abs=0.02)
        assert found["low"] <= found["mean"] <= found["high"]
    table = capsys.readouterr().out.partition("\n{\n")[0]
    average = [one["average"] for one in seeds]
    assert f"{np.mean(average):.2f}" in table and f"± {np.std(average, ddof=1):.2f}" in table


def test_vectors_are_cut_for_all_models(command, run, tmp_path, capsys):
    pairs = [(f"the cat {'a' * i}", f"a dog sees {i}", i % 6) for i in range(25)]
    own = tmp_path / "own.tsv"
    own.write_text("".join(f"{one}\t{two}\t{gold}\n" for one, two, gold in pairs))
    exported.export(tiny_model(1), tmp_path / "one")
    names = [str(run), f"{run} + {tmp_path / 'one'}", str(tmp_path / "one")]
    if find_spec("sentence_transformers"):
        names.append(f"sentence-transformers:{tmp_path / 'one'}")
    output = tmp_path / "scores.json"
    arguments = ("--sts", own, "--model", names[0], "--compare", *names[1:], "--output", output)
    command(evaluate, *arguments, "--truncate-dim", 5)
    lines = " ".join(capsys.readouterr().out.split())
    assert lines.count("vectors of 5") == len(names) + 1  # a sum has two members
    cut = json.loads(output.read_text())["models"]
    first, second, gold = zip(*pairs, strict=True)
    for name, found in zip(names, cut, strict=True):
        encoder = SentenceEncoder.load(name.removeprefix("sentence-transformers:"))
        one, two = (encoder.encode(side)[:, :5].astype(float) for side in (first, second))
        cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
        rho = spearmanr(cosines, gold).statistic
        assert found["sts"]["spearman"]["own"] == pytest.approx(100 * rho, abs=0.006)
        assert found["dimensions"] == 5
    command(evaluate, *arguments)
    whole = json.loads(output.read_text())["models"]
    assert [found["dimensions"] for found in whole] == [16] * len(names)
    for one, other in zip(cut, whole, strict=True):
        assert one["fingerprint"] != other["fingerprint"]
    for name in (names[0], names[-1]):
        with pytest.raises(UserError, match="--truncate-dim 17: choose 1 to 16"):
            load_model(name, truncate_dim=17)


def write_sst2(downstream: Path) -> Path:
    """One transfer task of the seven, that words decide."""
    folder = downstream / "SST" / "binary"
    folder.mkdir(parents=True)
    lines = "".join(f"the {'cat' if i % 2 else 'dog'} {'a' * i}\t{i % 2}\n" for i in range(24))
    for split in ("train", "dev", "test"):
        (folder / f"sentiment-{split}").write_text(lines)
    return downstream


def test_all_suites_and_what_one_cannot_do_is_reported(command, run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    monkeypatch.setitem(sys.modules, "mteb", None)
    (tmp_path / "own.tsv").write_text("the cat\ta dog\t1\nthe dog\tsees\t2\na cat\ta cat\t5\n")
    where = ("--sts", tmp_path / "own.tsv", "--transfer", write_sst2(tmp_path), "--dev")
    output = tmp_path / "scores.json"
    arguments = ("--suite", "all", *where, tmp_path / "own.tsv", "--output", output)
    with pytest.raises(SystemExit) as end:
        command(evaluate, "--model", run, *arguments)
    assert end.value.code == 2
    said = capsys.readouterr()
    result = json.loads(output.read_text())
    assert result["sts"]["pairs"] == {"own": 3, "average": 3}
    assert result["transfer"]["accuracy"]["SST2"] > 80  # a linear classifier sees a word
    assert list(result["transfer"]["missing"]) == ["MR", "CR", "SUBJ", "MPQA", "TREC", "MRPC"]
    (member,) = result["diagnostics"]["members"]
    assert np.shape(member["plain"]["e_cls"]) == np.shape(member["crossed"]["e_cls"])
    assert "pip install mteb" in result["mteb"]["error"] and "mteb: " in said.err
    for name in ("SST2", "uniformity", "own"):
        assert name in said.out
    assert all(result[suite]["seconds"] >= 0 for suite in ("sts", "transfer", "diagnostics"))


def test_one_model_that_fails_is_reported_and_the_others_are_scored(command, run, tmp_path, capsys):
    (tmp_path / "own.tsv").write_text("the cat\ta dog\t1\nthe dog\tsees\t2\na cat\ta cat\t5\n")
    exported.export(tiny_model(1), tmp_path / "good")
    output = tmp_path / "scores.json"
    both = f"{tmp_path / 'good'},{tmp_path / 'gone'}"
    arguments = ("--sts", tmp_path / "own.tsv", "--output", output, "--compare", both, run)
    with pytest.raises(SystemExit) as end:
        command(evaluate, "--model", tmp_path / "none", *arguments)
    assert end.value.code == 2
    said = capsys.readouterr()
    assert f"{tmp_path / 'none'} does not exist" in said.err
    result = json.loads(output.read_text())
    assert ["error" in one for one in result["models"]] == [True, False, True, False]
    assert result["differences"] == {} and "1 of 2 seeds" in said.out
    summary = result["methods"][both]["sts"]["own"]
    assert summary == {
        "mean": result["models"][1]["sts"]["spearman"]["own"],
        "sd": None,
        "seeds": 1,
    }


def test_a_path_may_hold_the_signs_of_names_and_seeds(command, tmp_path):
    (tmp_path / "own.tsv").write_text("the cat\ta dog\t1\nthe dog\tsees\t2\na cat\ta cat\t5\n")
    names = [tmp_path / "lr=3e-5" / "model", tmp_path / "one,two"]
    for name in names:
        exported.export(tiny_model(1), name)
    output = tmp_path / "scores.json"
    arguments = ("--sts", tmp_path / "own.tsv", "--output", output)
    command(evaluate, "--model", names[0], "--compare", names[1], *arguments)
    assert [one["method"] for one in json.loads(output.read_text())["models"]] == list(
        map(str, names)
    )


def test_what_is_scored_is_written_before_the_next_suite(command, run, tmp_path, monkeypatch):
    (tmp_path / "own.tsv").write_text("the cat\ta dog\t1\nthe dog\tsees\t2\na cat\ta cat\t5\n")
    output = tmp_path / "scores.json"

    def interrupted(self, model):
        raise KeyboardInterrupt

    monkeypatch.setattr(diagnostics_suite.Diagnostics, "score", interrupted)
    data = ("--sts", tmp_path / "own.tsv", "--dev", tmp_path / "own.tsv")
    with pytest.raises(SystemExit):
        command(evaluate, "--model", run, *data, "--output", output)
    assert "own" in json.loads(output.read_text())["sts"]["spearman"]


def test_arguments_that_do_not_go_together_are_refused(refused, run, tmp_path):
    (tmp_path / "own.tsv").write_text("a\tb\t1\nc\td\t2\n")
    own = ("--sts", tmp_path / "own.tsv")
    said = refused(evaluate, "--model", run, "--suite", "diagnostics", *own)
    assert "--suite diagnostics, but data for sts" in said
    assert "given twice" in refused(evaluate, "--model", run, "--compare", run, *own)
    assert "between commas is empty" in refused(evaluate, "--model", f"{run},", *own)
    assert "a folder; give the name" in refused(
        evaluate, "--model", run, *own, "--output", tmp_path
    )
    assert "choose from 0" in refused(evaluate, "--model", run, *own, "--seed", "-1")
    foreign = ("--model", "sentence-transformers:x", "--max-len", "9")
    assert "its folder decides max_len" in refused(evaluate, *foreign, *own)


def test_a_folder_that_scales_its_vectors_is_scored_so(command, tmp_path, monkeypatch):
    """A logistic regression sees the length of vectors, so that it must be the model's own."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    vectors, asked = {}, {}
    model = tiny_model(1)
    for name in ("raw", "scaled"):
        card = dataclasses.replace(read_card(model), normalize=name == "scaled")
        exported.export(model, tmp_path / name, card)

        def transfer(encode, tasks, *, seed, name=name):
            vectors[name] = encode(["the cat", "a dog sees"])
            return {"protocol": "", "accuracy": {}}

        def mteb(*arguments, name=name, **rest):
            asked[name] = Path(arguments[2]).name
            return {"protocol": "", "other": {}}

        monkeypatch.setattr(transfer_suite, "evaluate_transfer", transfer)
        monkeypatch.setattr(mteb_suite, "evaluate_mteb", mteb)
        data = ("--transfer", write_sst2(tmp_path / f"{name}_data"), "--mteb-tasks", "BUCC")
        command(evaluate, "--model", tmp_path / name, *data, "--output", tmp_path / f"{name}.json")
        assert json.loads((tmp_path / f"{name}.json").read_text())["normalize"] == bool(
            card.normalize
        )
    raw = vectors["raw"] / np.linalg.norm(vectors["raw"], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors["scaled"], raw, rtol=1e-5)
    assert not np.allclose(vectors["raw"], raw)
    assert asked["raw"] != asked["scaled"], "results of one must not be taken for the other's"


def test_a_model_of_sentence_transformers_is_scored_alike(command, tmp_path):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    exported.export(tiny_model(1), tmp_path / "model")
    sts = write_senteval(tmp_path / "downstream")
    found = []
    for name in (tmp_path / "model", f"sentence-transformers:{tmp_path / 'model'}"):
        command(evaluate, "--model", name, "--sts", sts, "--output", tmp_path / "scores.json")
        found.append(json.loads((tmp_path / "scores.json").read_text()))
    ours, theirs = found
    assert theirs["sts"]["pearson"] == pytest.approx(ours["sts"]["pearson"], abs=0.02)
    assert theirs["members"][0]["pooling"].startswith("Transformer + Pooling")
    assert theirs["members"][0]["serving_length"] == 16
    assert ours["members"][0]["serving_length"] == 16
    assert len({one["fingerprint"] for one in found}) == 2


def test_a_model_sentence_transformers_cannot_load_is_one_line(refused, tmp_path, monkeypatch):
    (tmp_path / "own.tsv").write_text("a\tb\t1\nc\td\t2\n")
    name, rest = f"sentence-transformers:{tmp_path / 'none'}", ("--sts", tmp_path / "own.tsv")
    if find_spec("sentence_transformers"):
        assert "cannot load it: " in refused(evaluate, "--model", name, *rest)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert "pip install sentence-transformers" in refused(evaluate, "--model", name, *rest)
