"""`python -m jtcse_jax.augment repeat-words|back-translate`: pairs to train on, from sentences.

Every sentence of the input becomes a line of a TSV: itself, and a second view of it. The TSV is a
source of the trainer. Started again after a kill, the same command goes on where it stopped.
"""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
import tyro

from jtcse_jax.back_translation import Translator, back_translate
from jtcse_jax.data.augmentation import repeat_words
from jtcse_jax.data.pair_file import PairFile
from jtcse_jax.data.sources import Source, open_source
from jtcse_jax.errors import UserError, one_line_errors

_WORDS_WINDOW = 8192  # sentences between two writes
_BATCHES = 8  # batches of translations between two writes; a kill loses at most so many
_SECONDS = 10  # between two lines of progress


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of both subcommands."""

    input: str
    """Sentences, one a line: a file or glob, plain, .gz or .xz; or tfds:..., hub:..., stdlib."""
    output: str
    """The .tsv file to write; must not exist. Until it is whole it is named OUTPUT.partial."""


@dataclass(frozen=True, kw_only=True)
class RepeatWords(Arguments):
    """Repeats some words of every sentence (ESimCSE). Words are what spaces separate.

    Train on the file with a data.max_len that cuts no sentence of it; the trainer prints how many
    it cuts. A repeated sentence that is cut lacks the last words of the other. data.pairs = repeat
    needs no file, draws new words in every epoch and loses none at any data.max_len.
    """

    rate: float = 0.32
    """Largest share of the words that are repeated; up to two always may be."""
    seed: int = 42
    """Of the draws; the same seed gives the same file."""


@dataclass(frozen=True, kw_only=True)
class BackTranslate(Arguments):
    """Translates every sentence into a pivot language and back, with Marian models (on torch)."""

    pivot: str | None = None
    """The pivot language, as fr; not needed where --forward and --backward name the models."""
    source: str = "en"
    """The language of the sentences."""
    forward: str | None = None
    """Folder or hub name; by default Helsinki-NLP/opus-mt-SOURCE-PIVOT."""
    backward: str | None = None
    """Folder or hub name; by default Helsinki-NLP/opus-mt-PIVOT-SOURCE."""
    forward_prefix: str = ""
    """Names the language to a --forward model of several, as >>cmn_Hans<<."""
    backward_prefix: str = ""
    """Names the language to a --backward model of several."""
    batch_size: int = 32
    """Sentences translated at once."""
    num_beams: int = 4
    """Beams of the search; 1 is the fastest."""
    max_len: int = 128
    """Longest sentence read and written, in tokens of the models; longer ones are cut."""


def make_repeated(arguments: RepeatWords) -> None:
    """Writes each sentence and itself with words repeated.

    The draws for a sentence follow from the seed and its number, so a resumed file is the same.
    Raises UserError for a rate or seed out of range, and what a source and a `PairFile` raise.
    """
    if not 0 <= arguments.rate <= 1:
        raise UserError(f"--rate {arguments.rate}: give a number from 0 to 1.")
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: give a number from 0.")
    source = _open(arguments)

    def second_views(number: int, sentences: list[str]) -> list[str]:
        return [
            " ".join(
                repeat_words(
                    sentence.split(),
                    arguments.rate,
                    np.random.default_rng((arguments.seed, number + i)),
                )
            )
            for i, sentence in enumerate(sentences)
        ]

    settings = {"command": "repeat-words", "--rate": arguments.rate, "--seed": arguments.seed}
    with PairFile(arguments.output, settings) as pairs:
        _write(source, pairs, _WORDS_WINDOW, second_views)
    _say_result(arguments, source, pairs)


def make_translated(arguments: BackTranslate) -> None:
    """Writes each sentence and what comes back of it; itself where nothing came back.

    Raises UserError for numbers below 1 and missing models, and what a source, a `PairFile` and
    a `Translator` raise.
    """
    forward, backward = _model_names(arguments)
    for name in ("batch_size", "num_beams", "max_len"):
        least = 2 if name == "max_len" else 1
        if getattr(arguments, name) < least:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {getattr(arguments, name)}: give at least {least}.")
    source = _open(arguments)
    empty = 0

    def second_views(number: int, sentences: list[str]) -> list[str]:
        nonlocal empty
        results = back_translate(sentences, there, back)
        empty += sum(not result.strip() for result in results)
        return [r if r.strip() else s for r, s in zip(results, sentences, strict=True)]

    sizes = {name: asdict(arguments)[name] for name in ("batch_size", "num_beams", "max_len")}
    # Not the batch size: a smaller one must be able to go on where memory was short.
    settings = {
        "command": "back-translate",
        "--forward": forward,
        "--backward": backward,
        "--forward-prefix": arguments.forward_prefix,
        "--backward-prefix": arguments.backward_prefix,
        "--num-beams": arguments.num_beams,
        "--max-len": arguments.max_len,
    }
    with PairFile(arguments.output, settings) as pairs:
        there = Translator(forward, prefix=arguments.forward_prefix, **sizes)
        back = Translator(backward, prefix=arguments.backward_prefix, **sizes)
        resumed = _write(source, pairs, _BATCHES * arguments.batch_size, second_views)
    _say_result(arguments, source, pairs)
    since = f" since sentence {resumed:,}" * (resumed > 0)
    if empty:
        _say(f"{empty:,} translations were empty{since}: the sentence itself stands there")
    if truncated := there.truncated + back.truncated:
        _say(f"{truncated:,} texts were cut to --max-len {arguments.max_len} tokens{since}")


def _model_names(arguments: BackTranslate) -> tuple[str, str]:
    source, pivot = arguments.source, arguments.pivot
    if pivot is None and not (arguments.forward and arguments.backward):
        raise UserError("give --pivot LANGUAGE, or both models: --forward and --backward.")
    return (
        arguments.forward or f"Helsinki-NLP/opus-mt-{source}-{pivot}",
        arguments.backward or f"Helsinki-NLP/opus-mt-{pivot}-{source}",
    )


def _open(arguments: Arguments) -> Source:
    source = open_source(arguments.input)
    if source.views > 1:
        raise UserError(f"--input {arguments.input}: lines of two sentences; give one a line.")
    if not arguments.output.endswith(".tsv"):
        raise UserError(
            f"--output {arguments.output}: the trainer knows files of pairs by their ending; give "
            "a name that ends in .tsv."
        )
    return source


def _write(
    source: Source,
    pairs: PairFile,
    window: int,
    second_views: Callable[[int, list[str]], list[str]],
) -> int:
    """Writes what is missing; returns how many pairs were there. `second_views` gets the number
    of its first sentence, from 0, and the sentences of a window."""
    # Reads the input once to its end, so that bad text is found now and not after hours.
    total = sum(1 for _ in source.read())
    sentences = source.read()
    resumed = pairs.resume(sentences, window)
    if resumed:
        _say(f"going on after {resumed:,} of {total:,} sentences")
    started = said = time.monotonic()
    while block := list(islice(sentences, window)):
        views = second_views(pairs.pairs, block)
        pairs.append(list(zip(block, views, strict=True)))
        now = time.monotonic()
        if now - said >= _SECONDS:
            said = now
            _say(_progress(pairs.pairs, total, (pairs.pairs - resumed) / (now - started)))
    pairs.finish()
    return resumed


def _progress(done: int, total: int, rate: float) -> str:
    minutes, seconds = divmod(round((total - done) / rate), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02}:{seconds:02}"
    return f"{done:,} of {total:,} sentences, {rate:,.1f} a second, {left} left"


def _say_result(arguments: Arguments, source: Source, pairs: PairFile) -> None:
    blank = f"; {source.blank:,} blank lines skipped" * (source.blank > 0)
    equal = f"{pairs.unchanged:,} of two equal sentences"
    _say(f"{arguments.output}: {pairs.pairs:,} pairs, {equal}{blank}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@one_line_errors
def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    arguments = tyro.cli(RepeatWords | BackTranslate, prog="python -m jtcse_jax.augment")
    if isinstance(arguments, RepeatWords):
        make_repeated(arguments)
    else:
        make_translated(arguments)


if __name__ == "__main__":
    main()
