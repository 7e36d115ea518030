"""`python -m jtcse_jax.prepare tokens|corpus`: prepares text and token caches before training."""

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jtcse_jax.data import beam_corpus
from jtcse_jax.data.cleaning import KEPT, Rules
from jtcse_jax.data.sources import Source, open_source
from jtcse_jax.data.text_arguments import TextArguments
from jtcse_jax.data.tokens import TokenCache, tokenize, truncating_backend, unfinished_cache
from jtcse_jax.data.unknown import percentage, warn_of_unknown
from jtcse_jax.errors import InUse, UserError
from jtcse_jax.runtime.command import command
from jtcse_jax.runtime.files import read_json
from jtcse_jax.runtime.output import Output
from jtcse_jax.store.hf_tokenizer import find_tokenizer
from jtcse_jax.user_path import user_path

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Tokens(TextArguments):
    """Makes the token cache of a text; without it, training makes one itself. If the command is
    killed, the same command resumes. Started at the same time on several hosts that share the cache
    folder, the processes share the work."""

    tokenizer: str
    """Folder or hub name of a model or of its tokenizer, as in model.towers or model.tokenizer."""
    max_len: int = 64
    """Tokens to keep of each sentence, as in data.max_len."""
    cache_dir: str = "~/.cache/jtcse_jax"
    """Folder of token caches, as in data.cache_dir."""


@dataclass(frozen=True, kw_only=True)
class Corpus(TextArguments):
    """Makes a corpus from documents with Apache Beam (pip install apache-beam): reads a document
    (or a paragraph) per line or record of the text, splits it into sentences, cleans these, drops
    duplicates and tokenises the rest. Train on it with --data.source 'OUTPUT/*.txt'
    --data.cache-dir OUTPUT/cache. If the command stops after the text is complete, the same command
    resumes there, and does not make finished parts of the tokens again."""

    output: str
    """The folder to make; until the text is complete it is OUTPUT.partial."""
    tokenizer: str | None = None
    """As in `tokens`; without it only the text is made."""
    max_len: int = 64
    """Tokens to keep of each sentence."""
    files: int = 16
    """Number of text files; a worker has the sentences of one in memory."""
    rules: Rules = Rules()
    beam: tuple[str, ...] = ("runner=FnApiRunner",)
    """Options of Beam, without dashes. To use all cores of this machine: runner=FnApiRunner
    direct_running_mode=multi_processing direct_num_workers=0. On a cluster, the workers need this
    package, and a file system that they share must hold the input and the output."""


def make_tokens(arguments: Tokens) -> None:
    """Makes the cache, or this process's share of it. Raises the errors of `tokenize`."""
    source = open_source(arguments.input, arguments.columns)
    tokenizer = find_tokenizer(arguments.tokenizer)
    _say_stats(tokenize(source, tokenizer, arguments.max_len, arguments.cache_dir))


def make_corpus(arguments: Corpus) -> None:
    """Makes the text, unless it exists, then its token cache.

    Raises UserError for bad input, an output with other settings, and files that cannot be written.
    """
    # No tracebacks of workers: this command prints their errors.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    if arguments.files < 1:
        raise UserError(f"--files {arguments.files}: give at least 1.")
    documents = arguments.open_sentences()
    beam_corpus.import_beam()  # if it is missing, before anything is written
    tokenizer = find_tokenizer(arguments.tokenizer) if arguments.tokenizer else None
    output = user_path(arguments.output).absolute()
    settings = {
        "input": documents.fingerprint(),
        "files": arguments.files,
        **asdict(arguments.rules),
    }
    text = Output(output)
    if output.exists() or not text.begin():
        _check_settings(output, settings)
    else:
        _write_text(documents, text, settings, arguments)
    _say_counts(output)
    if tokenizer is None:
        return
    text = open_source(f"{output}/*.txt")
    backend = truncating_backend(tokenizer, arguments.max_len)
    cache = unfinished_cache(text, backend, output / "cache")
    beam_corpus.make_parts(text, backend, cache, arguments.beam)
    _say_stats(tokenize(text, tokenizer, arguments.max_len, output / "cache"))
    print(f"to train: --data.source '{text.spec}' --data.cache-dir {output}/cache")


def _say_counts(output: Path) -> None:
    counts = dict(_read_manifest(output)["counts"])
    documents, kept = counts.pop(beam_corpus.DOCUMENTS), counts.pop(KEPT)
    distinct, duplicates = counts.pop(beam_corpus.DISTINCT), counts.pop("duplicates")
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "none"
    print(
        f"{output}: {documents:,} documents; sentences dropped: {dropped}; {kept:,} kept, of them "
        f"{duplicates:,} duplicates: {distinct:,} in the corpus"
    )


def _say_stats(cache: TokenCache) -> None:
    stats = cache.stats
    print(
        f"{stats['source']}: {stats['sentences']:,} sentences of {stats['mean_length']:.1f} "
        f"tokens, {stats['truncated']:,} cut to {cache.max_len}, "
        f"{percentage(stats['unknown'], stats['characters'])} of the characters unknown"
    )
    warn_of_unknown(stats["source"], stats["unknown"], stats["characters"])


def _check_settings(output: Path, settings: dict[str, object]) -> None:
    made = _read_manifest(output)["settings"]
    different = [name for name in settings if made.get(name) != settings[name]]
    if different:
        raise UserError(
            f"--output {output} was made with another {' and '.join(different)}: use a new folder."
        )


def _read_manifest(output: Path) -> dict[str, dict[str, Any]]:
    if not (output / MANIFEST).is_file():
        raise UserError(
            f"--output {output} exists but was not made by this command; choose a new folder."
        )
    return read_json(output / MANIFEST)


def _write_text(
    documents: Source, output: Output, settings: dict[str, object], arguments: Corpus
) -> None:
    """Writes the text and its manifest; nothing of an unfinished text is kept."""
    folder = output.folder / "text"
    with output.lock("text") as ours, output.writing():
        if not ours:
            raise InUse(f"{output.folder}: another process is writing it; wait until it ends.")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        counts = beam_corpus.write_sentences(
            documents, folder, arguments.rules, arguments.files, arguments.beam
        )
        counts["duplicates"] = counts[KEPT] - counts[beam_corpus.DISTINCT]
        manifest = {"source": documents.spec, "settings": settings, "counts": counts}
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        output.publish(folder)
    output.discard()


def prepare(arguments: Tokens | Corpus) -> None:
    """Prepares what the arguments ask for; errors as `make_tokens` and `make_corpus`."""
    if isinstance(arguments, Tokens):
        make_tokens(arguments)
    else:
        make_corpus(arguments)


main = command("prepare", Tokens | Corpus, prepare)


if __name__ == "__main__":
    main()
