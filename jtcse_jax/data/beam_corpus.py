"""Makes a corpus from documents with Apache Beam: split, clean, deduplicate, tokenise.

The text is a function of the documents: its sentences are distinct (`cleaning.duplicate_key`) and
sorted by their hashes, whatever the runner, the number of workers and the order of the files. So
the text is shuffled, and neighbours in it are not neighbours in a document. Beam's workers make the
tokens as the parts of a token cache.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from jtcse_jax.data import tokens
from jtcse_jax.data.cleaning import KEPT, Rules, duplicate_key, examine
from jtcse_jax.data.sources import Source, open_source
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.files import read_json
from jtcse_jax.runtime.output import Output

DOCUMENTS, DISTINCT = "documents", "distinct"
# A worker's error that a user can fix arrives as the last line of a traceback.
_RAISED = re.compile(
    r"(?:jtcse_jax\.errors\.UserError: |\b\w+: (?=\[Errno ))(.+) \[while running '"
)


def write_sentences(
    source: Source, folder: Path, rules: Rules, num_files: int, beam_options: Sequence[str]
) -> dict[str, int]:
    """Writes the distinct clean sentences of a source of documents; returns the counts.

    The files, such as `part-00003-of-00016.txt`, read in order, are sorted by the hash of the
    sentence. An empty file is not written.

    Args:
        source: documents, or paragraphs of them.
        folder: an existing empty folder that all workers can access.
        rules: which sentences are kept.
        num_files: files to write; a worker holds one in memory.
        beam_options: options of Beam's command line, without dashes.

    Raises:
        UserError: the source has an error, a file cannot be written, or nothing is left.
    """
    beam = import_beam()
    counts = folder / "counts"
    with _running(beam, beam_options) as pipeline:
        outcomes = (
            pipeline
            | "shards" >> beam.Create(range(source.num_shards))
            | "spread" >> beam.Reshuffle()
            | "read, split, clean" >> beam.FlatMap(outcomes_of, source.spec, source.columns, rules)
        )
        written = (
            outcomes
            | "kept" >> beam.Filter(lambda outcome: outcome[0] == KEPT)
            | "sentences" >> beam.Values()
            | "by content" >> beam.Map(with_digest)
            | "distinct" >> beam.CombinePerKey(max)
            | "one of each" >> beam.Values()
            | "by hash" >> beam.Map(with_file, num_files)
            | "of a file" >> beam.GroupByKey()
            | "write" >> beam.Map(write_file, str(folder), num_files)
        )
        counted = outcomes | beam.Keys() | beam.combiners.Count.PerElement()
        (
            (counted, written)
            | beam.Flatten()
            | "sums" >> beam.CombinePerKey(sum)
            | beam.combiners.ToDict()
            | "write counts" >> beam.Map(write_counts, str(counts))
        )
    found = read_json(counts)
    counts.unlink()
    if not found.get(DISTINCT):
        raise UserError(f"{source.spec}: no sentence is kept: {found}; change the rules.")
    return found


def make_parts(
    source: Source, backend: tokenizers.Tokenizer, output: Output, beam_options: Sequence[str]
) -> None:
    """Makes the missing parts of a token cache (`tokens.unfinished_cache`) on Beam's workers.

    Raises UserError if one cannot be written.
    """
    if not output.begin():
        return
    beam = import_beam()
    missing = [number for number in range(output.num_parts) if not output.is_done(number)]
    with _running(beam, beam_options) as pipeline:
        (
            pipeline
            | "shards" >> beam.Create(missing)
            | "spread" >> beam.Reshuffle()
            | "tokenise" >> beam.Map(make_part, source.spec, backend.to_str(), output)
        )


def outcomes_of(
    shard: int, spec: str, columns: Sequence[str], rules: Rules
) -> Iterator[tuple[str, str]]:
    """The outcomes (`examine`) of every document of a shard, and one count per document."""
    for document in open_source(spec, columns).read_shard(shard):
        yield DOCUMENTS, ""
        yield from examine(document, rules)


def with_digest(sentence: str) -> tuple[bytes, str]:
    """A sentence and a key that is equal for its duplicates.

    The largest of these is kept. It is among those with the fewest capitals and spaces.
    """
    key = duplicate_key(sentence).encode()
    return hashlib.blake2b(key, digest_size=16).digest(), sentence


def with_file(sentence: str, num_files: int) -> tuple[int, str]:
    """A sentence and the number of its file: each file has an equal range of hashes."""
    return int.from_bytes(_hash(sentence)) * num_files >> 64, sentence


def write_file(group: tuple[int, Iterable[str]], folder: str, num_files: int) -> tuple[str, int]:
    """Writes the sentences of a file, sorted by hash; returns their number."""
    number, sentences = group
    ordered = sorted(sentences, key=lambda sentence: (_hash(sentence), sentence))
    path = Path(folder) / f"part-{number:05}-of-{num_files:05}.txt"
    # Beam may run a step twice at once: each run writes its own file, and both are the same.
    unfinished = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    with open(unfinished, "w", encoding="utf-8", newline="") as file:
        file.writelines(f"{sentence}\n" for sentence in ordered)
    unfinished.replace(path)
    return DISTINCT, len(ordered)


def write_counts(counts: dict[str, int], path: str) -> None:
    """Writes the counts, summed over all workers."""
    Path(path).write_text(json.dumps(counts), encoding="utf-8")


def make_part(number: int, spec: str, backend: str, output: Output) -> None:
    """Makes one part of a token cache from arguments that can be sent to another machine."""
    tokens.make_part(number, open_source(spec), tokenizers.Tokenizer.from_str(backend), output)


def _hash(sentence: str) -> bytes:
    return hashlib.blake2b(sentence.encode(), digest_size=8).digest()


def import_beam() -> Any:
    """The module `apache_beam`; UserError if it is not installed."""
    logging.disable(logging.WARNING)  # Beam warns that Google's libraries, unused here, are absent
    try:
        import apache_beam
    except ImportError as error:
        raise UserError("a corpus is made with Apache Beam: pip install apache-beam") from error
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


@contextmanager
def _running(beam: Any, options: Sequence[str]) -> Iterator[Any]:
    """A pipeline that runs when the block ends; it reports a user's error in one line."""
    from apache_beam.options.pipeline_options import PipelineOptions

    parsed = PipelineOptions([f"--{option}" for option in options])
    # Beam only warns about unknown options.
    names = {option.partition("=")[0] for option in options}
    if unknown := sorted(names - parsed.get_all_options().keys()):
        raise UserError(f"--beam {unknown[0]}: Beam has no such option; correct its name.")
    try:
        pipeline = beam.Pipeline(options=parsed)
    except ValueError as error:  # an unknown runner
        raise UserError(f"--beam {' '.join(options)}: {error}") from error
    try:
        with pipeline:
            yield pipeline
    except RuntimeError as error:
        if raised := _RAISED.findall(str(error)):
            raise UserError(raised[-1]) from error
        raise
