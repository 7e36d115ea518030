"""STS readers and the built-in development set, against files the tests write and the real ones."""

import re
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from processes import ROOT
from tiny_models import SUBSETS, write_senteval

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.sts import word_overlap
from jtcse_jax.evaluation.sts_data import builtin_dev, load_pairs, load_sts

STS = ROOT.parent / "shared" / "data" / "senteval" / "downstream" / "STS"
needs_shared = pytest.mark.skipif(
    not STS.is_dir(), reason="the STS sets in ../shared/data/senteval are not on this machine"
)


def test_load_sts_reads_every_task_and_skips_unscored_pairs(tmp_path):
    folder = write_senteval(tmp_path / "downstream")
    loaded, missing = load_sts(folder)
    assert missing == {}
    tasks = {task.name: task for task in loaded}
    assert list(tasks) == ["STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R"]
    for name, subsets in SUBSETS.items():
        assert sorted(tasks[name].subsets) == sorted(subsets)
        assert len(tasks[name].pairs) == 2 * len(subsets)
        for subset, pairs in tasks[name].subsets.items():
            assert pairs.first == [f"{name} {subset} {i} one" for i in (0, 2)]
            assert pairs.second == [f"{name} {subset} {i} two" for i in (0, 2)]
            assert pairs.gold.tolist() == [4.25, 0.0]
    together = tasks["STS16"].pairs
    assert together.first == [s for p in tasks["STS16"].subsets.values() for s in p.first]
    assert tasks["STS-B"].pairs.first == ['She said "no', "a b"]
    assert tasks["STS-B"].pairs.gold.tolist() == [3.0, 5.0]
    assert tasks["SICK-R"].pairs.second == ["A cat sits", "y"]
    assert tasks["SICK-R"].pairs.gold.tolist() == [3.3, 1.0]
    from_parent, _ = load_sts(folder.parent)
    assert [task.pairs.first for task in from_parent] == [t.pairs.first for t in tasks.values()]


def test_load_sts_names_what_is_missing_and_reads_the_rest(tmp_path):
    folder = write_senteval(tmp_path / "downstream")
    for kind in ("gs", "input"):
        (folder / "STS14-en-test" / f"STS.{kind}.images.txt").unlink()
    (folder.parent / "SICK" / "SICK_test_annotated.txt").unlink()
    tasks, missing = load_sts(folder)
    assert [task.name for task in tasks] == ["STS12", "STS13", "STS15", "STS16", "STS-B"]
    assert list(missing) == ["STS14", "SICK-R"]
    assert missing["STS14"].endswith("STS.input.images.txt is missing and 1 more")
    assert missing["SICK-R"].endswith("SICK_test_annotated.txt is missing")
    shutil.rmtree(folder / "STS12-en-test")
    for path in (folder, folder.parent):
        assert [task.name for task in load_sts(path)[0]] == ["STS13", "STS15", "STS16", "STS-B"]
    with pytest.raises(UserError, match="empty: no STS task in SentEval's layout"):
        (tmp_path / "empty").mkdir()
        load_sts(tmp_path / "empty")
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        load_sts(tmp_path / "nowhere")


def test_load_sts_takes_a_file_of_the_users_own(tmp_path):
    (tmp_path / "own.tsv").write_text("a\tb\t1\nc\td\t2\n")
    (task,), missing = load_sts(tmp_path / "own.tsv")
    assert (task.name, task.pairs.second, missing) == ("own", ["b", "d"], {})


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("STS12-en-test/STS.gs.MSRvid.txt", "5\n4\n", r"MSRvid.txt: 3 pairs but 2 scores"),
        ("STS12-en-test/STS.gs.MSRvid.txt", "5\n4\nx\n", r"gs.MSRvid.txt:3: the score 'x'"),
        ("STS12-en-test/STS.gs.MSRvid.txt", "\n\n\n", r"gs.MSRvid.txt: 0 scores, two are needed"),
        ("STS12-en-test/STS.input.MSRvid.txt", "a\tb\nc\td\ne\n", r"MSRvid.txt:3: one column"),
        ("STS12-en-test/STS.input.MSRvid.txt", "\tb\nc\td\ne\tf\n", r"MSRvid.txt:1: a sentence is"),
        ("../SICK/SICK_test_annotated.txt", "a\tb\n", r"annotated.txt:1: 2 columns"),
        (
            "../SICK/SICK_test_annotated.txt",
            "pair_ID\tsentence_A\tsentence_B\trelatedness_score\n1\ta\tb\n",
            r"annotated.txt:2: 3 columns, but the header has 4",
        ),
        (
            "../SICK/SICK_test_annotated.txt",
            "pair_ID\tsentence_A\tsentence_B\trelatedness_score\n",
            r"annotated.txt: 0 sentence pairs; write two",
        ),
    ],
)
def test_load_sts_says_which_line_is_wrong(tmp_path, file, content, message):
    folder = write_senteval(tmp_path / "downstream")
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        load_sts(folder)


def test_load_pairs_reads_own_files(tmp_path):
    file = tmp_path / "dev.tsv"
    # A byte-order mark, Windows line ends, a blank line, a Unicode line separator in a sentence.
    file.write_bytes('\ufeffone\u2028two\t three \t5\r\n\r\n"a\tb\t-0.5\r\n'.encode())
    pairs = load_pairs(file)
    assert pairs.first == ["one\u2028two", '"a']
    assert pairs.second == ["three", "b"]
    assert pairs.gold.tolist() == [5.0, -0.5] and len(pairs) == 2


PAIRS = [('One, a "b".', "two", 4.25), ("Three", "It's 4", 0.0), ("five", '"six"', 2.0)]
NAMED = pd.DataFrame(PAIRS, columns=["sentence1", "sentence2", "score"])
STSB = NAMED[["score", "sentence1", "sentence2"]]
LAYOUTS = {
    "header.tsv": lambda path: path.write_text(lines(NAMED, header=True)),
    "kor.tsv": lambda path: path.write_text(lines(before(STSB, 4, "genre id"), header=True)),
    "glue.tsv": lambda path: path.write_text(lines(before(NAMED, 7, "source"), header=True)),
    "sick.txt": lambda path: path.write_text(
        lines(
            before(NAMED, 1, "pair_ID")
            .set_axis(["pair_ID", "sentence_A", "sentence_B", "relatedness_score"], axis=1)
            .assign(entailment_label="NEUTRAL"),
            header=True,
        )
    ),
    "cnsd.txt": lambda path: path.write_text(lines(before(NAMED, 1, "id"), "||")),
    "stsb.csv": lambda path: path.write_text(lines(before(STSB, 4, "genre"))),
    "stsb.txt": lambda path: path.write_text(lines(before(STSB, 4, "genre"), "||")),
    "pandas.csv": lambda path: NAMED.to_csv(path),
    "pandas.tsv": lambda path: NAMED.to_csv(path, sep="\t"),
    "plain.csv": lambda path: NAMED.to_csv(path, index=False, header=False),
    "excel.csv": lambda path: NAMED.to_csv(path, sep=";", index=False, encoding="utf-8-sig"),
    "quoted.tsv": lambda path: NAMED.to_csv(path, sep="\t", index=False, header=False),
    "jsts.jsonl": lambda path: NAMED.rename(columns={"score": "label"}).to_json(
        path, orient="records", lines=True
    ),
    "sts17.json": lambda path: NAMED.assign(lang="en-en").to_json(path, orient="records"),
    "mteb.parquet": lambda path: NAMED.assign(label=1).to_parquet(path),
}


def lines(frame, delimiter="\t", header=False):
    rows = [list(frame.columns)] * header + frame.values.tolist()
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows)


def before(frame, count, name):
    """The frame after more columns of text."""
    more = {f"{name}{i}": f"{name}.{i}" for i in range(count)}
    return pd.concat([pd.DataFrame(more, index=frame.index), frame], axis=1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_load_pairs_finds_the_columns(tmp_path, name):
    LAYOUTS[name](tmp_path / name)
    pairs = load_pairs(tmp_path / name)
    assert list(zip(pairs.first, pairs.second, pairs.gold, strict=True)) == PAIRS


def test_load_pairs_finds_the_scores_of_a_semeval_file(tmp_path):
    inputs = tmp_path / "STS.input.track5.en-en.txt"
    inputs.write_text("a\tb\nc\td\ne\tf\n")
    with pytest.raises(UserError, match="STS.gs.track5.en-en.txt are not beside it"):
        load_pairs(inputs)
    (tmp_path / "STS.gs.track5.en-en.txt").write_text("1\n\n3\n")
    pairs = load_pairs(inputs)
    assert (pairs.first, pairs.gold.tolist()) == (["a", "e"], [1.0, 3.0])


@pytest.mark.parametrize(
    "columns",
    [
        "sentence1 sentence2",
        "sentence1 sentence2 score similarity",
        "sentence1 sentence2 sentence_1 score",
        "sentence1 sentence2 question1 question2 score",
        "premise hypothesis label",
        "one two three",
    ],
)
def test_load_pairs_lists_the_columns_it_cannot_tell_apart(tmp_path, columns):
    names = columns.split()
    pd.DataFrame([["a"] * len(names)] * 2, columns=names).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match=f"a.csv.*{', '.join(names)}.*sentence1"):
        load_pairs(tmp_path / "a.csv")


def test_load_pairs_picks_the_split_of_an_sts_benchmark_folder(tmp_path):
    folder = write_senteval(tmp_path / "downstream")
    benchmark = folder / "STSBenchmark"
    for split, score in (("train", 1.0), ("dev", 2.0), ("test", 3.0)):
        for place in (benchmark, folder):
            assert load_pairs(place, split).gold.tolist() == [score, 5.0]
    assert load_pairs(benchmark).gold[0] == 2.0  # dev is the default
    assert load_pairs(benchmark / "sts-train.csv", "test").gold[0] == 1.0  # a file is that file
    raw = benchmark / "stsbenchmark"
    raw.mkdir()
    (benchmark / "sts-dev.csv").rename(raw / "sts-dev.csv")
    assert load_pairs(benchmark).gold[0] == 2.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 sentence pairs; write two"),
        (b"\n\n", "0 sentence pairs; write two"),
        (b"a\tb\t1\n", "1 sentence pairs; write two"),
        (b"a\tb\n", ":1: 2 columns"),
        (b"a\tb\t1\n\na b c\n", ":3: 1 columns"),
        (b"a\tb\t1\n" + b"x\t" * 4 + b"2\ta\tb\n", ":2: 7 columns"),
        (b"one\ttwo\tscore\na\tb\t1\n", ":1: the score 'score' is not a number.*one, two, score"),
        (b"a\tb\t1\nc\td\tnan\n", ":2: the score 'nan' is not a number"),
        (b"a\tb\t1\nc\td\t\n", ":2: the score '' is not a number"),
        (b"a\tb\t1\n \td\t2\n", ":2: a sentence is empty"),
        (b"a\tb\t1\nc\t\t2\n", ":2: a sentence is empty"),
        (b"a\tb\t1\nc\xff\td\t2\n", ":2: byte 2 of the line is not UTF-8"),
        (b"a\tb\t3\nc\td\t3.0\n", "every pair has the score 3"),
    ],
)
def test_load_pairs_says_which_line_is_wrong(tmp_path, content, message):
    file = tmp_path / "dev.tsv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(file)) + ".*" + message):
        load_pairs(file)


def test_load_pairs_refuses_unknown_places(tmp_path):
    with pytest.raises(UserError, match="nowhere.tsv: cannot be read"):
        load_pairs(tmp_path / "nowhere.tsv")
    with pytest.raises(UserError, match="no sts-dev.csv"):
        load_pairs(tmp_path)
    with pytest.raises(UserError, match="'validation' is unknown; choose one of train, dev, test"):
        load_pairs(tmp_path, "validation")


@needs_shared
def test_real_test_sets_have_their_published_sizes():
    tasks, _ = load_sts(STS)
    sizes = {task.name: len(task.pairs) for task in tasks}
    assert sizes == {
        "STS12": 3108,
        "STS13": 1500,
        "STS14": 3750,
        "STS15": 3000,
        "STS16": 1186,
        "STS-B": 1379,
        "SICK-R": 4927,
    }
    for task in tasks:
        low = 1 if task.name == "SICK-R" else 0
        assert task.pairs.gold.min() >= low and task.pairs.gold.max() <= 5


@needs_shared
@pytest.mark.parametrize("layout", ["STSBenchmark", "STSBenchmark/stsbenchmark"])
def test_both_layouts_of_the_real_sts_benchmark_are_read(layout):
    sizes = {split: len(load_pairs(STS / layout, split)) for split in ("train", "dev", "test")}
    assert sizes == {"train": 5749, "dev": 1500, "test": 1379}
    dev = load_pairs(STS / layout)
    assert dev.second[1].lower().startswith("a child is riding a horse") and dev.gold[1] == 4.75


def test_builtin_dev_is_balanced_over_the_grades():
    dev = builtin_dev()
    counts = Counter(dev.gold.tolist())
    assert len(dev) == len(dev.first) == len(dev.second) == 220
    assert set(counts) == {grade / 2 for grade in range(11)}
    assert all(counts[grade] >= 25 for grade in (0, 1, 2, 3, 4, 5))
    assert max(counts.values()) <= len(dev) / 6


def test_builtin_dev_repeats_nothing():
    dev = builtin_dev()
    words = [" ".join(re.findall(r"\w+", s.lower())) for s in dev.first + dev.second]
    assert len(set(words)) == len(words)


def test_builtin_dev_needs_more_than_common_words():
    dev = builtin_dev()
    overlap = word_overlap(dev)
    assert np.sum((dev.gold >= 4) & (overlap < 0.2)) >= 20
    assert np.sum((dev.gold <= 2) & (overlap > 0.5)) >= 10
