"""Text and dev sets given as Python objects: as what a file with the same content would be."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import pytest
from runs import largest_difference, saved_params, tiny_config

from jtcse_jax.config import DataConfig
from jtcse_jax.data.sources import open_source
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.development import Development
from jtcse_jax.training.python_data import with_python_data
from jtcse_jax.training.trainer import train

PAIRS = [("The cat sees me.", "A cat\nlooks at me."), ("Ein Tag, ग", '"quoted"\there')]
SCORED = [(*PAIRS[0], 4), (*PAIRS[1], 0.5), ("a", "b", 3)]


def given(tmp_path, source=None, dev=None, **fields) -> DataConfig:
    return with_python_data(DataConfig(cache_dir=str(tmp_path), **fields), source, dev)


def read(data: DataConfig) -> list[str]:
    return list(open_source(data.source, data.columns).read())


def test_sentences_and_pairs_are_read_back_as_they_are(tmp_path):
    sentences = ["One.", "  Two,\nin two lines. ", "", '{"a": 1}', "द्वि"]
    data = given(tmp_path, sentences)
    assert read(data) == [text.strip() for text in sentences if text]
    assert open_source(data.source, data.columns).views == 1
    pairs = given(tmp_path, PAIRS)
    assert open_source(pairs.source, pairs.columns).views == 2
    assert read(pairs) == [text for pair in PAIRS for text in pair]
    triples = given(tmp_path, [("a", "b", "c"), ("d", "e", "f")])
    assert open_source(triples.source, triples.columns).views == 3
    assert read(triples) == list("abcdef")
    rows = [("a", "b", "c", "d", "e"), ("f", "g", "h", "i", "j")]
    for positives, names in (
        (1, ("anchor", "positive", "negative", "negative2", "negative3")),
        (3, ("anchor", "positive", "positive2", "positive3", "negative")),
    ):
        several = given(tmp_path, rows, positives=positives)
        assert several.columns == names and several.positives == positives
        assert read(several) == list("abcdefghij")
    # An empty half leaves out the pair, as in a table.
    assert read(given(tmp_path, [*PAIRS, ("a", None), ("", "b")])) == read(pairs)


def test_scored_pairs_are_read_back_as_they_are(tmp_path):
    pairs = Development(given(tmp_path, dev=SCORED).dev).pairs
    assert list(zip(pairs.first, pairs.second, pairs.gold, strict=True)) == SCORED


def test_columns_of_a_dataset(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = {"id": [1, 2, 3], "text": ["One.", None, "Three."], "other": ["1", "2", "3"]}
    dataset = datasets.Dataset.from_dict(rows)
    assert read(given(tmp_path, dataset, columns=("text",))) == ["One.", "Three."]
    pairs = given(tmp_path, dataset, columns=("other", "text"))
    assert read(pairs) == ["1", "One.", "3", "Three."]
    triples = given(tmp_path, dataset, columns=("other", "text", "other", "text"))
    assert read(triples) == ["1", "One."] * 2 + ["3", "Three."] * 2
    assert read(given(tmp_path, dataset["other"])) == ["1", "2", "3"]  # a column is a sequence
    first, second, scores = (list(column) for column in zip(*SCORED, strict=True))
    named = {"idx": [7, 8, 9], "sentence2": second, "sentence1": first, "score": scores}
    dev = given(tmp_path, dev=datasets.Dataset.from_dict(named)).dev
    assert dev == given(tmp_path, dev=SCORED).dev
    for names, message in (((), "id, text, other"), (("txt",), "no column 'txt'")):
        with pytest.raises(UserError, match=message):
            given(tmp_path, dataset, columns=names)
    with pytest.raises(UserError, match=r"source\[0\]: 1 is not text"):
        given(tmp_path, dataset, columns=("id",))
    with pytest.raises(UserError, match="dev has the columns id, text, other"):
        given(tmp_path, dev=dataset)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"source": []}, "source is empty"),
        ({"source": "sentences.txt"}, "source is of type str"),
        ({"source": {"text": ["a"]}}, "source is of type dict"),
        ({"source": iter(["a"])}, "source is of type list_iterator"),
        ({"source": ["a", ("b", "c")]}, r"source\[1\] is \('b', 'c'\), unlike"),
        ({"source": ["a", None]}, r"source\[1\] is None"),
        ({"source": [1, 2]}, r"source\[0\] is 1: give"),
        ({"source": [()]}, r"source\[0\] is \(\)"),
        ({"source": [("a", "b", "c", "d"), ("a", "b", "c")]}, r"source\[1\] is .*, unlike"),
        ({"source": [("a", 1)]}, r"source\[0\]: 1 is not text"),
        ({"source": ["a", "\ud800"]}, r"source\[1\]: half a surrogate pair"),
        ({"dev": []}, "dev is empty"),
        ({"dev": [("a", "b")]}, r"dev\[0\] is"),
        ({"dev": ["ab"]}, r"dev\[0\] is"),
        ({"dev": [("a", "b", 1), ("c", None, 2)]}, r"dev\[1\]: None is not text"),
        ({"dev": [("a", "b", "much")]}, r"dev\[0\]: the score 'much'"),
        ({"dev": [("a", "b", float("nan"))]}, r"dev\[0\]: the score nan"),
    ],
)
def test_bad_objects_are_one_sentence_and_leave_no_file(tmp_path, objects, message):
    with pytest.raises(UserError, match=message) as caught:
        given(tmp_path, **objects)
    assert "\n" not in str(caught.value)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_objects_need_no_package_datasets(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    assert read(given(tmp_path, ["a"])) == ["a"]
    assert "datasets" not in sys.modules


def test_the_config_is_the_same_in_every_home(tmp_path, monkeypatch):
    configs = []
    for home in "ab":
        monkeypatch.setenv("HOME", str(tmp_path / home))
        configs.append(given("~/cache", ["One."], SCORED))
        assert read(configs[-1]) == ["One."]
        assert len(Development(configs[-1].dev).pairs) == 3
    assert configs[0] == configs[1]


def test_a_full_disk_is_one_sentence(tmp_path, largest_files):
    with largest_files(1000), pytest.raises(UserError, match="cannot be written"):
        given(tmp_path, ["a long sentence " * 9] * 20_000)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_run_on_objects_is_that_on_files_and_resumes(finished, tmp_path):
    config = tiny_config(tmp_path)
    sentences = Path(config.data.source).read_text().splitlines()
    scored = [line.split("\t") for line in Path(config.data.dev).read_text().splitlines()]
    dev = [(first, second, float(score)) for first, second, score in scored]
    device = jax.devices()[:1]
    # As in a script: the config names no text.
    data = dataclasses.replace(config.data, source="", dev=None)
    config = dataclasses.replace(config, data=data)
    train(dataclasses.replace(config, max_steps=6), source=sentences, dev=dev, devices=device)
    result = train(config, source=list(sentences), dev=list(dev), devices=device)
    assert largest_difference(saved_params(finished.workdir), saved_params(config.workdir)) == 0
    assert [line["step"] for line in result.history if "dev_spearman" in line] == [0, 4, 6, 8, 10]
    recorded = json.loads((result.workdir / "train_config.json").read_text())["data"]
    assert Development(recorded["dev"]).pairs.first == [first for first, _, _ in dev]
    assert list(open_source(recorded["source"], recorded["columns"]).read()) == sentences
    with pytest.raises(UserError, match=r"data\.source"):
        train(config, source=sentences[:-1], dev=dev, devices=device)
