"""Second views of sentences: repeated words, and round trips through tiny Marian models."""

import itertools
import math
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from marian import copy_without, reference, write_marian
from processes import start_python, wait_for
from runs import write_text

from jtcse_jax import augment
from jtcse_jax.data import tsv_file
from jtcse_jax.data.augmentation import repeat_words
from jtcse_jax.data.back_translation import Translator, back_translate
from jtcse_jax.data.sources import open_source
from jtcse_jax.errors import UserError

SIZES = {"batch_size": 4, "num_beams": 2, "max_len": 12}
OPTIONS = ("--batch-size", 4, "--num-beams", 2, "--max-len", 12)


@pytest.mark.parametrize(("words", "rate"), [("a", 0.32), ("abc", 0.32), ("abcde", 0.7)])
def test_repeated_words_are_drawn_as_the_paper_says(words, rate):
    """Every result is met as often as the paper's formula says, counted out."""
    most = max(2, int(rate * len(words)))
    expected = Counter()
    for count in range(most + 1):
        sets = list(itertools.combinations(range(len(words)), min(count, len(words))))
        for positions in sets:
            result = "".join(w * (1 + (i in positions)) for i, w in enumerate(words))
            expected[result] += 1 / (most + 1) / len(sets)
    rng, draws = np.random.default_rng(0), 6000
    seen = Counter("".join(repeat_words(words, rate, rng)) for _ in range(draws))
    assert seen.keys() == expected.keys()
    for result, share in expected.items():
        deviation = math.sqrt(draws * share * (1 - share))
        assert abs(seen[result] - draws * share) < 5 * deviation, result


def test_repeated_words_of_any_sequence():
    rng = np.random.default_rng(1)
    assert repeat_words([], 0.32, rng) == []
    ids = np.arange(40)
    for _ in range(50):
        repeated = repeat_words(ids, 0.5, rng)
        assert sorted(set(repeated)) == ids.tolist() and repeated == sorted(repeated)
        assert len(repeated) <= 60
        assert 40 <= len(repeat_words(ids, 0.5, rng, room=3)) <= 43
    assert repeat_words(ids, 0.5, rng, room=0) == ids.tolist()


@pytest.fixture
def text(tmp_path) -> Path:
    """160 different sentences and two blank lines."""
    path = write_text(tmp_path / "text.txt")
    path.write_text("\n" + path.read_text() + "  \n")
    return path


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "pairs.tsv"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `augment` as a shell would; returns what it says on stderr."""

    def call(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["augment", *map(str, arguments)])
        augment.main()
        return capsys.readouterr().err

    return call


@pytest.fixture
def refused(command, capsys):
    """Runs a command that must end with status 2, and returns its one line."""

    def call(*arguments) -> str:
        with pytest.raises(SystemExit) as exit:
            command(*arguments)
        assert exit.value.code == 2
        said = capsys.readouterr().err.removesuffix("\n")
        assert said.startswith("error: ") and "\n" not in said
        return said

    return call


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The pairs as the trainer reads them."""
    sentences = list(open_source(str(path)).read())
    return list(zip(sentences[::2], sentences[1::2], strict=True))


def test_repeat_words_writes_pairs(command, text, output, tmp_path):
    said = command("repeat-words", "--input", text, "--output", output)
    pairs = read_pairs(output)
    assert [first for first, _ in pairs] == text.read_text().split("\n")[1:-2]
    for number, (first, second) in enumerate(pairs):
        rng = np.random.default_rng((42, number))
        assert second.split() == repeat_words(first.split(), 0.32, rng)
    equal = sum(first == second for first, second in pairs)
    assert 0 < equal < 100
    assert f"160 pairs, {equal} with two equal sentences; 2 blank lines or records skipped" in said
    command("repeat-words", "--input", text, "--output", tmp_path / "2.tsv", "--seed", 43)
    assert (tmp_path / "2.tsv").read_text() != output.read_text()
    command("repeat-words", "--input", text, "--output", tmp_path / "3.tsv", "--rate", 0.9)
    assert (tmp_path / "3.tsv").stat().st_size > 1.1 * output.stat().st_size


def test_repeat_words_goes_on_after_an_error(command, text, output, monkeypatch, tmp_path):
    command("repeat-words", "--input", text, "--output", tmp_path / "whole.tsv")
    monkeypatch.setattr(augment, "_WORDS_WINDOW", 50)
    monkeypatch.setattr(tsv_file, "_SECONDS", 0)
    stop_after(monkeypatch, augment, "repeat_words", 120)
    with pytest.raises(Stopped):
        command("repeat-words", "--input", text, "--output", output)
    monkeypatch.setattr(augment, "repeat_words", repeat_words)
    said = command("repeat-words", "--input", text, "--output", output)
    assert "resuming after 100 of 160 sentences\n150 of 160 sentences, " in said
    assert " a second, 0:00:0" in said
    assert output.read_bytes() == (tmp_path / "whole.tsv").read_bytes()


class Stopped(Exception):
    """Stands for what ends a run in the middle."""


def stop_after(monkeypatch, module, name, calls):
    """Makes a function raise `Stopped` when it was called often enough."""
    left = iter(range(calls))
    function = getattr(module, name)

    def stopping(*arguments, **keywords):
        if next(left, None) is None:
            raise Stopped
        return function(*arguments, **keywords)

    monkeypatch.setattr(module, name, stopping)


@pytest.mark.slow
def test_repeat_words_goes_on_after_a_kill(command, output, tmp_path):
    text = tmp_path / "long.txt"
    text.write_text("".join(f"Sentence number {n} of a long text.\n" for n in range(30000)))
    command("repeat-words", "--input", text, "--output", tmp_path / "whole.tsv")
    arguments = ["repeat-words", "--input", str(text), "--output", str(output)]
    process = start_python("-m", "jtcse_jax.augment", *arguments)
    partial = tmp_path / "pairs.tsv.partial"
    wait_for(partial, "*.done", process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert partial.exists() and not output.exists()
    assert "resuming after" in command(*arguments)
    assert output.read_bytes() == (tmp_path / "whole.tsv").read_bytes()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--rate", 1.1), "--rate 1.1: give a number from 0 to 1"),
        (("--rate", "nan"), "--rate nan: give a number from 0 to 1"),
        (("--seed", -1), "--seed -1: give a number from 0"),
        (("--output", "pairs.txt"), "--output pairs.txt: give a name that ends in .tsv"),
        (("--input", "absent.txt"), "absent.txt: no such file"),
        (("--input", "PAIRS"), "has two sentences a line; give one a line"),
        (("--output", "PAIRS"), "exists already"),
    ],
)
def test_repeat_words_refuses(refused, text, output, tmp_path, options, reason):
    (tmp_path / "two.tsv").write_text("a\tb\n")
    options = [str(tmp_path / "two.tsv") if word == "PAIRS" else word for word in options]
    said = refused("repeat-words", "--input", text, "--output", output, *options)
    assert reason in said
    assert sorted(os.listdir(tmp_path)) == ["text.txt", "two.tsv"]


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """Folders of three models: there, back, and one that writes empty translations."""
    folder = tmp_path_factory.mktemp("marian")
    return {
        "there": write_marian(folder / "there", 0),
        "back": write_marian(folder / "back", 1),
        "mute": write_marian(folder / "mute", 2, end=1e4),
    }


def some_texts(text: Path, count: int = 6) -> list[str]:
    """Sentences of different lengths."""
    lines = text.read_text().split("\n")[1:-2]
    return [lines[i * 25][: 6 + i * 11 % 31] for i in range(count)]


def test_translations_are_those_of_transformers(marian, text):
    translator = Translator(str(marian["there"]), **SIZES)
    texts = some_texts(text)
    expected = [reference(marian["there"], one) for one in texts]
    assert translator.translate(texts) == expected
    assert len(set(expected)) > 4, "the model must tell the texts apart"
    assert translator.translate([]) == []


def test_long_texts_are_cut_and_counted(marian, text):
    translator = Translator(str(marian["there"]), **SIZES | {"max_len": 4})
    texts = some_texts(text)
    translated = translator.translate(texts)
    assert translated == [reference(marian["there"], one, max_len=4) for one in texts]
    lengths = [len(ids) for ids in translator._encode(texts)]
    assert translator.truncated == sum(length > 4 for length in lengths)
    assert 0 < translator.truncated < len(texts)


def test_a_batch_holds_texts_of_one_length(marian, monkeypatch):
    translator = Translator(str(marian["there"]), **SIZES)
    shapes, generate = [], translator._model.generate

    def spy(**keywords):
        assert keywords["attention_mask"].all(), "a padded batch"
        shapes.append(tuple(keywords["input_ids"].shape))
        return generate(**keywords)

    monkeypatch.setattr(translator._model, "generate", spy)
    translator.translate(["The dog", "The dog sees someone at night."] * 8)
    assert [rows for rows, _ in shapes] == [4, 4, 4, 4]
    assert shapes[0][1] == max(width for _, width in shapes), "the longest come first"


def test_a_prefix_names_the_language(marian):
    plain = Translator(str(marian["there"]), **SIZES)
    prefixed = Translator(str(marian["there"]), **SIZES, prefix=">>x<<")
    assert prefixed.translate(["The dog"]) == [reference(marian["there"], ">>x<< The dog")]
    assert prefixed.translate(["The dog"]) != plain.translate(["The dog"])
    with pytest.raises(UserError, match="not know the prefix >>z<<; it knows: >>x<<, >>y<<"):
        Translator(str(marian["there"]), **SIZES, prefix=">>z<<")


def test_an_empty_pivot_is_not_translated(marian, monkeypatch):
    mute, back = (Translator(str(marian[name]), **SIZES) for name in ("mute", "back"))
    assert back_translate(["The dog", "A cat"], mute, back) == ["", ""]
    asked = []
    monkeypatch.setattr(mute, "translate", lambda texts: ["un", " ", "deux"])
    monkeypatch.setattr(back, "translate", lambda texts: asked.extend(texts) or ["one", "two"])
    assert back_translate(["1", "2", "3"], mute, back) == ["one", "", "two"]
    assert asked == ["un", "deux"]


def test_a_gpu_without_memory_is_reported(marian, monkeypatch):
    import torch

    translator = Translator(str(marian["there"]), **SIZES)

    def generate(**_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(translator._model, "generate", generate)
    with pytest.raises(UserError, match="too little memory for --batch-size 4 with --num-beams 2"):
        translator.translate(["The dog"])


def models(marian, forward="there", backward="back"):
    return ("--forward", marian[forward], "--backward", marian[backward], *OPTIONS)


def test_back_translate_writes_pairs(command, marian, text, output):
    texts = [*some_texts(text), "A\ttab"]
    text.write_text("\n".join(texts))
    said = command("back-translate", "--input", text, "--output", output, *models(marian))
    there, back = marian["there"], marian["back"]
    expected = [reference(back, reference(there, one)) or one for one in texts]
    pairs = output.read_text().removesuffix("\n").split("\n")
    assert pairs == [
        f"{one}\t{round_trip}".replace("A\ttab", "A tab")
        for one, round_trip in zip(texts, expected, strict=True)
    ]
    assert len(read_pairs(output)) == 7 and "7 pairs" in said
    assert f"{expected.count(texts[5])} translations were empty" in said and expected[5] == texts[5]


def test_back_translate_goes_on_after_an_error(command, marian, text, output, monkeypatch):
    whole = output.with_name("whole.tsv")
    lines = text.read_text().split("\n")[1:81]
    text.write_text("\n".join(lines))
    command("back-translate", "--input", text, "--output", whole, *models(marian))
    monkeypatch.setattr(augment, "_TRANSLATED_WINDOW", 32)
    stop_after(monkeypatch, augment, "back_translate", 2)
    arguments = ("back-translate", "--input", text, "--output", output)
    with pytest.raises(Stopped):
        command(*arguments, *models(marian))
    monkeypatch.setattr(augment, "back_translate", back_translate)
    assert "resuming after 64 of 80" in command(*arguments, *models(marian))
    assert output.read_bytes() == whole.read_bytes()


def test_other_models_do_not_go_on(command, refused, marian, text, output, monkeypatch):
    monkeypatch.setattr(augment, "_TRANSLATED_WINDOW", 32)
    stop_after(monkeypatch, augment, "back_translate", 1)
    arguments = ("back-translate", "--input", text, "--output", output)
    with pytest.raises(Stopped):
        command(*arguments, *models(marian))
    said = refused(*arguments, *models(marian, backward="there"))
    assert "begun with another --backward (" in said
    said = refused(*arguments, *models(marian), "--num-beams", 3)
    assert "begun with another --num-beams (2, now 3)" in said


def test_an_empty_translation_gives_the_sentence(command, marian, text, output):
    text.write_text("The dog\nA cat at night\n")
    arguments = ("back-translate", "--input", text, "--output", output)
    said = command(*arguments, *models(marian, backward="mute"))
    assert read_pairs(output) == [("The dog", "The dog"), ("A cat at night", "A cat at night")]
    assert "2 pairs, 2 with two equal sentences" in said
    assert "2 translations were empty: the sentence itself is used instead" in said


def test_texts_that_were_cut_are_reported(command, marian, text, output):
    arguments = ("back-translate", "--input", text, "--output", output)
    text.write_text("The dog sees someone behind a big red house\nA cat\n")
    said = command(*arguments, *models(marian, forward="mute"), "--max-len", 6)
    assert "1 texts were cut to --max-len 6 tokens" in said


def test_models_are_named_by_the_languages():
    names = augment._model_names(
        augment.BackTranslate(input="", output="", language="en", pivot="ru", forward="mine")
    )
    assert names == ("mine", "Helsinki-NLP/opus-mt-ru-en")
    arguments = augment.BackTranslate(input="", output="", language="de", pivot="fr")
    assert augment._model_names(arguments)[0] == "Helsinki-NLP/opus-mt-de-fr"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "give --pivot LANGUAGE, or both models"),
        (("--pivot", "fr", "--batch-size", 0), "--batch-size 0: give at least 1"),
        (("--pivot", "fr", "--num-beams", 0), "--num-beams 0: give at least 1"),
        (("--pivot", "fr", "--max-len", 1), "--max-len 1: give at least 2"),
    ],
)
def test_back_translate_refuses(refused, text, output, options, reason):
    said = refused("back-translate", "--input", text, "--output", output, *options)
    assert reason in said


@pytest.mark.parametrize("package", ["torch", "sentencepiece"])
def test_an_absent_package_is_named(refused, text, output, monkeypatch, package, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "sentencepiece":
        pytest.importorskip("torch", reason="torch is looked for first")
    said = refused("back-translate", "--pivot", "fr", "--input", text, "--output", output)
    assert f"needs the package {package}: pip install torch sentencepiece" in said
    assert os.listdir(tmp_path) == ["text.txt"]


def test_what_is_no_marian_model_is_refused(refused, marian, text, output, tmp_path):
    def said(forward):
        names = ("--forward", forward, "--backward", marian["back"])
        return refused("back-translate", "--input", text, "--output", output, *names)

    absent = tmp_path / "absent"
    assert f"{absent} cannot be opened as a Marian model" in said(absent)
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text('{"model_type": "bert"}')
    assert f"{bert}: a model of type bert; name a Marian model" in said(bert)
    assert not output.with_name("pairs.tsv.partial").exists()
    incomplete = copy_without(marian["there"], tmp_path / "incomplete", "encoder.layers.0.fc1")
    assert "the weights have no model.encoder.layers.0.fc1.bias" in said(incomplete)
    with pytest.raises(UserError, match="--max-len 65 is above its 64 positions"):
        Translator(str(marian["there"]), **SIZES | {"max_len": 65})
