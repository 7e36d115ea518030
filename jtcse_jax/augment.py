"""`python -m jtcse_jax.augment repeat-words|back-translate|mine-negatives`: makes training data.

Each sentence of the input becomes one line of a .tsv: the sentence and a second view of it. Or each
pair of the input becomes lines of three: anchor, positive, hard negative. The trainer reads the
.tsv as a source. If the command is killed, the same command resumes. Started several times with one
output, the processes share the work.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jtcse_jax.data.augmentation import repeat_words
from jtcse_jax.data.back_translation import Translator, back_translate
from jtcse_jax.data.blocks import Blocks
from jtcse_jax.data.sources import Source, open_source
from jtcse_jax.data.stored_texts import StoredTexts, TextBlocks
from jtcse_jax.data.text_arguments import TextArguments
from jtcse_jax.data.tsv_file import TsvFile, check_tsv, say, to_cell
from jtcse_jax.encoding.encoder import BLOCK, SentenceEncoder, warn_of_losses
from jtcse_jax.encoding.index import Backend, mapped_index
from jtcse_jax.encoding.mining import REASONS, Guards, hard_negatives, option
from jtcse_jax.encoding.pair_texts import PairTexts
from jtcse_jax.encoding.vector_file import kept_vectors
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.command import command
from jtcse_jax.store import ensemble
from jtcse_jax.store.ensemble import EncoderArguments

# Sentences or pairs of a part: a killed process loses the part it was working on.
_WORDS_WINDOW, _TRANSLATED_WINDOW, _MINED_WINDOW = 8192, 256, 2048


@dataclass(frozen=True, kw_only=True)
class Arguments(TextArguments):
    """The arguments of all subcommands."""

    output: str
    """The .tsv file to write; it must not exist. Until it is complete it is OUTPUT.partial."""


@dataclass(frozen=True, kw_only=True)
class RepeatWords(Arguments):
    """Repeats some words of every sentence (ESimCSE). Words are separated by spaces.

    Train on the file with a data.max_len that cuts none of its sentences; the trainer prints how
    many it cuts. If a sentence with repeated words is cut, it loses its last words, which the other
    view keeps. data.pairs = repeat needs no file: it draws new words in every epoch, and loses none
    at any data.max_len.
    """

    rate: float = 0.32
    """Largest share of words to repeat, from 0 to 1; up to two words may always be repeated."""
    seed: int = 42
    """Seed of the random choice of words; the same seed writes the same file."""


@dataclass(frozen=True, kw_only=True)
class BackTranslate(Arguments):
    """Translates every sentence into a pivot language and back, with Marian models (in torch)."""

    pivot: str | None = None
    """The pivot language, such as fr; not needed with both --forward and --backward."""
    language: str = "en"
    """Language of the sentences."""
    forward: str | None = None
    """Model from LANGUAGE to PIVOT, a folder or hub name; by default
    Helsinki-NLP/opus-mt-LANGUAGE-PIVOT."""
    backward: str | None = None
    """Model from PIVOT to LANGUAGE, a folder or hub name; by default
    Helsinki-NLP/opus-mt-PIVOT-LANGUAGE."""
    forward_prefix: str = ""
    """Token that names the target language to a --forward model with several, such as
    >>cmn_Hans<<."""
    backward_prefix: str = ""
    """Token that names the target language to a --backward model with several."""
    batch_size: int = 32
    """Number of sentences translated at once."""
    num_beams: int = 4
    """Number of beams in the search; 1 is the fastest."""
    max_len: int = 128
    """Longest text read or written, in tokens of the models; longer ones are cut."""


@dataclass(frozen=True, kw_only=True)
class MineNegatives(Guards, EncoderArguments, Arguments):
    """Adds hard negatives to pairs: texts that a model finds near an anchor, but not its positives.

    They are searched among the positives of all pairs, and in --corpus. The output has a line for
    each negative, under the header anchor, positive, negative. A pair without a negative has no
    line; how many there are, and by which guard, is printed. Texts and vectors stay in files of
    OUTPUT.partial: in memory are some 50 bytes a text, and the index of a backend of faiss.
    """

    input: Annotated[str, tyro.conf.arg(aliases=("--source",))]
    """The pairs: a .tsv file of two columns, anchor and positive, or a table (name the two
    columns), hub:NAME:SPLIT:FIELD,FIELD, or - for standard input."""
    corpus: str | None = None
    """More texts that may be negatives, one a line, or a table with --corpus-column."""
    corpus_column: str | None = None
    """Column of --corpus that holds the texts, if it is a table."""
    backend: Backend = "exact"
    """exact compares an anchor with all texts; those of faiss are the same as in `search`."""


def make_repeated(arguments: RepeatWords) -> None:
    """Writes each sentence and a copy of it with repeated words.

    The random choice for a sentence depends on the seed and the sentence's number only, so a
    resumed file is the same. Raises UserError for a rate or seed out of range, and the errors of
    the source and of `Output`.
    """
    if not 0 <= arguments.rate <= 1:
        raise UserError(f"--rate {arguments.rate}: give a number from 0 to 1.")
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: give a number from 0.")
    blocks = _open(arguments, _WORDS_WINDOW)

    def second_views(number: int, sentences: list[str]) -> tuple[list[str], dict[str, int]]:
        views = [
            " ".join(
                repeat_words(
                    sentence.split(),
                    arguments.rate,
                    np.random.default_rng((arguments.seed, number + i)),
                )
            )
            for i, sentence in enumerate(sentences)
        ]
        return views, {}

    settings = {"command": "repeat-words", "--rate": arguments.rate, "--seed": arguments.seed}
    _write(arguments, blocks, settings, second_views)


def make_translated(arguments: BackTranslate) -> None:
    """Writes each sentence and its round-trip translation, or the sentence if that is empty.

    Raises UserError for numbers that are too small and for missing models, and the errors of the
    source, of `Output` and of `Translator`.
    """
    forward, backward = _model_names(arguments)
    for name in ("batch_size", "num_beams", "max_len"):
        least = 2 if name == "max_len" else 1
        if getattr(arguments, name) < least:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {getattr(arguments, name)}: give at least {least}.")
    blocks = _open(arguments, _TRANSLATED_WINDOW)
    sizes = {name: asdict(arguments)[name] for name in ("batch_size", "num_beams", "max_len")}
    there = Translator(forward, prefix=arguments.forward_prefix, **sizes)
    back = Translator(backward, prefix=arguments.backward_prefix, **sizes)

    def second_views(number: int, sentences: list[str]) -> tuple[list[str], dict[str, int]]:
        cut = there.truncated + back.truncated
        results = back_translate(sentences, there, back)
        views = [r if r.strip() else s for r, s in zip(results, sentences, strict=True)]
        empty = sum(not result.strip() for result in results)
        return views, {"empty": empty, "cut": there.truncated + back.truncated - cut}

    # Without the batch size: after running out of memory the user resumes with a smaller one.
    settings = {
        "command": "back-translate",
        "--forward": forward,
        "--backward": backward,
        "--forward-prefix": arguments.forward_prefix,
        "--backward-prefix": arguments.backward_prefix,
        "--num-beams": arguments.num_beams,
        "--max-len": arguments.max_len,
    }
    sums = _write(arguments, blocks, settings, second_views)
    if sums.get("empty"):
        say(f"{sums['empty']:,} translations were empty: the sentence itself is used instead")
    if sums.get("cut"):
        say(f"{sums['cut']:,} texts were cut to --max-len {arguments.max_len} tokens")


def make_mined(arguments: MineNegatives) -> None:
    """Writes each pair with its hard negatives, under a header: a table for `data.columns`.

    Raises UserError for an input without pairs, and the errors of the sources, of the model and of
    `Output`.
    """
    check_tsv(arguments.output)
    source = open_source(arguments.input, arguments.columns)
    if source.views != 2:
        raise UserError(
            f"--input {arguments.input} has one sentence a line; give pairs, a .tsv file of two "
            "columns, or name two columns of a table (--columns)."
        )
    corpus = _open_corpus(arguments)
    texts = PairTexts(
        lambda: map(to_cell, source.read()), lambda: map(to_cell, corpus.read() if corpus else ())
    )
    blank = source.blank
    members = arguments.load_members()
    settings = {
        "command": "mine-negatives",
        "input": source.fingerprint(),
        "corpus": corpus and corpus.fingerprint(),
        "model": ensemble.fingerprint(members),
        "--backend": arguments.backend,
    }
    settings |= {option(field.name): getattr(arguments, field.name) for field in fields(Guards)}
    total, header = len(texts.pairs), ("anchor", "positive", "negative")
    file = TsvFile(arguments.output, total, _MINED_WINDOW, "pairs", settings, header)
    stored = texts.stored(file.folder)
    anchor_vectors, corpus_vectors = _vectors(SentenceEncoder.of(members), stored, file.folder)
    index = mapped_index(arguments.backend, corpus_vectors, file.folder / "index.faiss")

    def triples(number: int) -> tuple[list[tuple[str, str, str]], dict[str, int]]:
        pairs = texts.pairs[number * _MINED_WINDOW :][:_MINED_WINDOW]
        anchors = np.unique(pairs[:, 0])
        mined = hard_negatives(index, texts, anchors, anchor_vectors, corpus_vectors, arguments)
        found = dict(zip(anchors.tolist(), mined, strict=True))
        lines = [
            (stored[0][anchor], stored[1][positive], stored[1][negative])
            for anchor, positive in pairs.tolist()
            for negative in found[anchor].numbers.tolist()
        ]
        reasons = Counter(found[anchor].reason for anchor in pairs[:, 0].tolist())
        return lines, {"lines": len(lines), **{name: reasons[name] for name in REASONS}}

    sums = file.fill(triples)
    if sums:
        none = sum(sums[reason] for reason in REASONS)
        found = f"{len(texts.pairs) - none:,} of {len(texts.pairs):,} pairs"
        say(f"{arguments.output}: {sums['lines']:,} negatives for {found}{_skipped(blank)}")
        for reason in REASONS:
            why = "no other text exists" if reason == REASONS[0] else f"of {option(reason)}"
            if sums[reason]:
                say(f"{sums[reason]:,} pairs have no negative because {why}")


def _open_corpus(arguments: MineNegatives) -> Source | None:
    if arguments.corpus is None:
        return None
    column = arguments.corpus_column
    source = open_source(arguments.corpus, (column,) if column else ())
    if source.views != 1:
        raise UserError(
            f"--corpus {arguments.corpus} has two sentences a line; give one, or --corpus-column."
        )
    return source


def _vectors(
    encoder: SentenceEncoder, stored: tuple[StoredTexts, StoredTexts], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of the anchors and of the texts, from files in the folder of the output."""
    vectors, width = [], encoder.kept_width()
    for name, texts in zip(("query", "document"), stored, strict=True):
        encode = partial(encoder.encode_block, prompts=encoder.prompts(prompt_name=name))
        path, blocks = folder / f"{name}.npy", TextBlocks(texts, BLOCK)
        vectors.append(kept_vectors(path, blocks, len(texts), width, BLOCK, encode))
    warn_of_losses(encoder)
    return vectors[0], vectors[1]


def _model_names(arguments: BackTranslate) -> tuple[str, str]:
    language, pivot = arguments.language, arguments.pivot
    if pivot is None and not (arguments.forward and arguments.backward):
        raise UserError("give --pivot LANGUAGE, or both models: --forward and --backward.")
    return (
        arguments.forward or f"Helsinki-NLP/opus-mt-{language}-{pivot}",
        arguments.backward or f"Helsinki-NLP/opus-mt-{pivot}-{language}",
    )


def _open(arguments: Arguments, window: int) -> Blocks:
    check_tsv(arguments.output)
    return Blocks(arguments.open_sentences(), window)


def _write(
    arguments: Arguments,
    blocks: Blocks,
    settings: dict[str, object],
    second_views: Callable[[int, list[str]], tuple[list[str], dict[str, int]]],
) -> dict[str, int]:
    """Writes the missing pairs; returns the sums of their counts, {} if another process has them.

    `second_views` gets the number of its first sentence, from 0, and the sentences of a block. It
    returns their second views and counts.
    """
    file = TsvFile(
        arguments.output,
        blocks.num_sentences,
        blocks.size,
        "sentences",
        {"input": blocks.source.fingerprint(), **settings},
    )

    def pairs(number: int) -> tuple[list[tuple[str, str]], dict[str, int]]:
        sentences = blocks[number]
        views, counts = second_views(number * blocks.size, sentences)
        made = [(to_cell(a), to_cell(b)) for a, b in zip(sentences, views, strict=True)]
        equal = sum(first == second for first, second in made)
        return made, {"pairs": len(made), "equal": equal, **counts}

    sums = file.fill(pairs)
    if sums:
        equal = f"{sums['equal']:,} with two equal sentences{_skipped(blocks.num_blank)}"
        say(f"{arguments.output}: {sums['pairs']:,} pairs, {equal}")
    return sums


def _skipped(blank: int) -> str:
    return f"; {blank:,} blank lines or records skipped" * (blank > 0)


def augment(arguments: RepeatWords | BackTranslate | MineNegatives) -> None:
    """Writes the file; errors as `make_repeated`, `make_translated` and `make_mined`."""
    if isinstance(arguments, RepeatWords):
        make_repeated(arguments)
    elif isinstance(arguments, BackTranslate):
        make_translated(arguments)
    else:
        make_mined(arguments)


main = command("augment", RepeatWords | BackTranslate | MineNegatives, augment)


if __name__ == "__main__":
    main()
