"""Indexes of nearest neighbours by cosine, by the name of their backend, and on disk.

| backend | what it is |
|---|---|
| `exact` | numpy; compares all vectors |
| `flat` | faiss; compares all vectors, with more threads |
| `hnsw` | faiss; a graph: approximate, fast to search, slow to build, larger than the vectors |
| `ivfpq` | faiss; codes of a sixteenth of the vectors' size: approximate, also its cosines |

On disk an index is a folder: `vectors.npy` [n, D] float32 or, of faiss, `index.faiss`;
`sentences.jsonl` with one JSON string a line; and `index.json` with the backend and the hashes of
the model and of the first file. That hash finds damage, not malice, and faiss reads its file by
itself: load only a folder that you trust.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from jtcse_jax.encoding.exact_index import ExactIndex
from jtcse_jax.encoding.faiss_index import FaissIndex
from jtcse_jax.encoding.progress import progress_bar
from jtcse_jax.errors import UserError, writing
from jtcse_jax.runtime.output import Output
from jtcse_jax.user_path import user_path

Backend = Literal["exact", "flat", "hnsw", "ivfpq"]

SENTENCES, FACTS = "sentences.jsonl", "index.json"

Index = ExactIndex | FaissIndex


def make_index(backend: Backend, width: int) -> Index:
    """Makes an empty index. UserError for an unknown backend, or if faiss is missing."""
    if backend not in get_args(Backend):
        raise UserError(f"backend = {backend!r}: choose one of {', '.join(get_args(Backend))}.")
    return ExactIndex(width) if backend == "exact" else FaissIndex(width, backend)


def mapped_index(backend: Backend, vectors: np.ndarray, path: Path) -> Index:
    """The index of vectors [n, D] that are mapped from a file.

    "exact" leaves them there. An index of faiss is kept in the file `path`: it is made once, by one
    process, with a progress bar. The folder of `path` must belong to these vectors only. UserError
    as in `make_index` and `add`.
    """
    if backend == "exact":
        return ExactIndex.mapped(vectors)
    output = Output(path)
    if output.begin():
        for number in output.claim():  # the only part
            made = FaissIndex(vectors.shape[1], backend)
            print(f"making the index of {backend}", file=sys.stderr)
            with progress_bar(len(vectors)) as progress:
                made.add(vectors, done=partial(progress.advance, progress.task_ids[0]))
            made.write(output.folder / made.file)
            del made  # before it is read again
            output.mark(number)
        with output.last_step() as ours:
            if ours:
                output.publish(output.folder / FaissIndex.file)
    return FaissIndex.read(path, backend)


def save(folder: str | Path, index: Index, sentences: Sequence[str], model: str) -> None:
    """Writes an index; the folder appears complete or not at all.

    Args:
      folder: must be empty or not exist.
      index: the vectors.
      sentences: their sentences, in the same order.
      model: the hash of the model that encoded them.
    Raises:
      UserError: the folder is not empty or cannot be written.
    """
    folder = user_path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; choose a new folder for the index.")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        with writing(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            index.write(partial / index.file)
            with (partial / SENTENCES).open("w", encoding="ascii") as file:
                file.writelines(json.dumps(sentence) + "\n" for sentence in sentences)
            facts = {"model": model, "backend": index.backend, "hash": _hash(partial / index.file)}
            (partial / FACTS).write_text(json.dumps(facts) + "\n", encoding="ascii")
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(folder: str | Path, model: str) -> tuple[Index, list[str]]:
    """Reads an index, of the backend it was saved with, and its sentences.

    Raises UserError if the folder holds no index, it is damaged, `model` did not encode it, or
    faiss is missing.
    """
    folder = user_path(folder)
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="ascii"))
        with (folder / SENTENCES).open(encoding="ascii") as file:
            sentences = [json.loads(line) for line in file]
        backend, encoded_by = facts["backend"], facts["model"]
        path = folder / (ExactIndex if backend == "exact" else FaissIndex).file
        if _hash(path) != facts["hash"]:
            raise ValueError(f"{path.name} has changed")
        index = ExactIndex.read(path) if backend == "exact" else FaissIndex.read(path, backend)
        intact = backend in get_args(Backend) and len(index) == len(sentences)
        intact = intact and all(isinstance(sentence, str) for sentence in sentences)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is not an index: it has no {Path(error.filename).name}."
        ) from error
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder}: the index is damaged ({error}): build it again.") from error
    if not intact:
        raise UserError(f"{folder}: the index is damaged: build it again.")
    if encoded_by != model:
        raise UserError(
            f"{folder}: another model encoded this index, or this one with other settings: build "
            "it again."
        )
    return index, sentences


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
