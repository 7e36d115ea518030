"""`python -m jtcse_jax.augment repeat-words|back-translate`: makes training pairs from sentences.

Each sentence of the input becomes one line of a .tsv: the sentence and a second view of it. The
trainer reads the .tsv as a source. If the command is killed, the same command resumes.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np

from jtcse_jax.data.augmentation import repeat_words
from jtcse_jax.data.back_translation import Translator, back_translate
from jtcse_jax.data.pair_file import PairFile
from jtcse_jax.data.sources import Source
from jtcse_jax.data.text_arguments import TextArguments
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.command import command

_WORDS_WINDOW = 8192  # sentences between two writes
_BATCHES = 8  # batches of translations between two writes; a kill loses at most these
_SECONDS = 10  # between two lines of progress


@dataclass(frozen=True, kw_only=True)
class Arguments(TextArguments):
    """The arguments of both subcommands."""

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


def make_repeated(arguments: RepeatWords) -> None:
    """Writes each sentence and a copy of it with repeated words.

    The random choice for a sentence depends on the seed and the sentence's number only, so a
    resumed file is the same. Raises UserError for a rate or seed out of range, and the errors of
    the source and of `PairFile`.
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
    """Writes each sentence and its round-trip translation, or the sentence if that is empty.

    Raises UserError for numbers that are too small and for missing models, and the errors of the
    source, of `PairFile` and of `Translator`.
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
    with PairFile(arguments.output, settings) as pairs:
        there = Translator(forward, prefix=arguments.forward_prefix, **sizes)
        back = Translator(backward, prefix=arguments.backward_prefix, **sizes)
        resumed = _write(source, pairs, _BATCHES * arguments.batch_size, second_views)
    _say_result(arguments, source, pairs)
    since = f" since sentence {resumed:,}" * (resumed > 0)
    if empty:
        _say(f"{empty:,} translations were empty{since}: the sentence itself is used instead")
    if truncated := there.truncated + back.truncated:
        _say(f"{truncated:,} texts were cut to --max-len {arguments.max_len} tokens{since}")


def _model_names(arguments: BackTranslate) -> tuple[str, str]:
    language, pivot = arguments.language, arguments.pivot
    if pivot is None and not (arguments.forward and arguments.backward):
        raise UserError("give --pivot LANGUAGE, or both models: --forward and --backward.")
    return (
        arguments.forward or f"Helsinki-NLP/opus-mt-{language}-{pivot}",
        arguments.backward or f"Helsinki-NLP/opus-mt-{pivot}-{language}",
    )


def _open(arguments: Arguments) -> Source:
    source = arguments.open_sentences()
    if not arguments.output.endswith(".tsv"):
        raise UserError(
            f"--output {arguments.output}: give a name that ends in .tsv; the trainer recognises "
            "files of pairs by this ending."
        )
    return source


def _write(
    source: Source,
    pairs: PairFile,
    window: int,
    second_views: Callable[[int, list[str]], list[str]],
) -> int:
    """Writes the missing pairs; returns how many pairs were there before.

    `second_views` gets the number of its first sentence, from 0, and the sentences of a window.
    """
    # Reads the whole input first, so that bad text is an error now and not after hours.
    total = sum(1 for _ in source.read())
    sentences = source.read()
    resumed = pairs.resume(sentences, window)
    if resumed:
        _say(f"resuming after {resumed:,} of {total:,} sentences")
    started = reported = time.monotonic()
    while block := list(islice(sentences, window)):
        views = second_views(pairs.pairs, block)
        pairs.append(list(zip(block, views, strict=True)))
        now = time.monotonic()
        if now - reported >= _SECONDS:
            reported = now
            _say(_progress(pairs.pairs, total, (pairs.pairs - resumed) / (now - started)))
    pairs.finish()
    return resumed


def _progress(done: int, total: int, rate: float) -> str:
    minutes, seconds = divmod(round((total - done) / rate), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02}:{seconds:02}"
    return f"{done:,} of {total:,} sentences, {rate:,.1f} a second, {left} left"


def _say_result(arguments: Arguments, source: Source, pairs: PairFile) -> None:
    blank = f"; {source.blank:,} blank lines or records skipped" * (source.blank > 0)
    equal = f"{pairs.unchanged:,} with two equal sentences"
    _say(f"{arguments.output}: {pairs.pairs:,} pairs, {equal}{blank}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def augment(arguments: RepeatWords | BackTranslate) -> None:
    """Writes the pairs; errors as `make_repeated` and `make_translated`."""
    if isinstance(arguments, RepeatWords):
        make_repeated(arguments)
    else:
        make_translated(arguments)


main = command("augment", RepeatWords | BackTranslate, augment)


if __name__ == "__main__":
    main()
