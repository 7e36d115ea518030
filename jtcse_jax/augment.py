"""`python -m jtcse_jax.augment repeat-words|back-translate`: makes training pairs from sentences.

Each sentence of the input becomes one line of a .tsv: the sentence and a second view of it. The
trainer reads the .tsv as a source. If the command is killed, the same command resumes. Started
several times with one output, the processes share the work.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from jtcse_jax.data.augmentation import repeat_words
from jtcse_jax.data.back_translation import Translator, back_translate
from jtcse_jax.data.blocks import Blocks
from jtcse_jax.data.text_arguments import TextArguments
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.command import command
from jtcse_jax.runtime.files import check_new
from jtcse_jax.runtime.output import Output
from jtcse_jax.user_path import user_path

# Sentences of a part: a killed process loses the part it was working on.
_WORDS_WINDOW, _TRANSLATED_WINDOW = 8192, 256
_SECONDS = 10  # between two lines of progress
_ONE_CELL = str.maketrans("\t\n\r", "   ")


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
        _say(f"{sums['empty']:,} translations were empty: the sentence itself is used instead")
    if sums.get("cut"):
        _say(f"{sums['cut']:,} texts were cut to --max-len {arguments.max_len} tokens")


def _model_names(arguments: BackTranslate) -> tuple[str, str]:
    language, pivot = arguments.language, arguments.pivot
    if pivot is None and not (arguments.forward and arguments.backward):
        raise UserError("give --pivot LANGUAGE, or both models: --forward and --backward.")
    return (
        arguments.forward or f"Helsinki-NLP/opus-mt-{language}-{pivot}",
        arguments.backward or f"Helsinki-NLP/opus-mt-{pivot}-{language}",
    )


def _open(arguments: Arguments, window: int) -> Blocks:
    check_new(arguments.output)
    if not arguments.output.endswith(".tsv"):
        raise UserError(
            f"--output {arguments.output}: give a name that ends in .tsv; the trainer recognises "
            "files of pairs by this ending."
        )
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
    output = Output(user_path(arguments.output), len(blocks))
    if not output.begin({"input": blocks.source.fingerprint(), **settings}):
        check_new(arguments.output)
    total, resumed = blocks.num_sentences, output.num_done() * blocks.size
    if resumed:
        _say(f"resuming after {min(resumed, total):,} of {total:,} sentences")
    started = reported = time.monotonic()
    made = 0
    for number in output.claim():
        sentences = blocks[number]
        views, counts = second_views(number * blocks.size, sentences)
        pairs = [(_to_cell(a), _to_cell(b)) for a, b in zip(sentences, views, strict=True)]
        with output.new_file(f"{output.part(number)}.tsv") as file:
            file.write("".join(f"{first}\t{second}\n" for first, second in pairs).encode())
        equal = sum(first == second for first, second in pairs)
        output.mark(number, {"pairs": len(pairs), "equal": equal, **counts})
        made += len(pairs)
        now = time.monotonic()
        if now - reported >= _SECONDS:
            reported = now
            done = min(output.num_done() * blocks.size, total)
            _say(_progress(done, total, made / (now - started)))
    sums = {}
    with output.last_step() as ours:
        if ours:
            sums = output.sums()
            with output.aside() as whole:
                output.join("tsv", whole)
                output.publish(whole)
            blank = f"; {blocks.num_blank:,} blank lines or records skipped" * (
                blocks.num_blank > 0
            )
            equal = f"{sums['equal']:,} with two equal sentences"
            _say(f"{arguments.output}: {sums['pairs']:,} pairs, {equal}{blank}")
    return sums


def _to_cell(sentence: str) -> str:
    """The sentence as a column: tabs and line breaks become spaces, white space is stripped."""
    return sentence.translate(_ONE_CELL).strip()


def _progress(done: int, total: int, rate: float) -> str:
    minutes, seconds = divmod(round((total - done) / rate), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02}:{seconds:02}"
    return f"{done:,} of {total:,} sentences, {rate:,.1f} a second, {left} left"


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
