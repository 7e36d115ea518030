"""Encoding: ours against sentence-transformers, and against the device's own limit.

    python -m benchmarks.encode --text sentences.txt --towers 1 2 --output encode.json

Every contender reads the same exported folder and encodes the same sentences. `cosine with ours` is
the least one of a sentence's vector with ours, both minus the common mean and computed in float32;
if it is too low the command fails after its results are written. The device's limit is the
arithmetic for real tokens, divided by the rate of large products on the same device. The opponents
need `pip install torch sentence-transformers`.
"""

import argparse
import dataclasses
import logging
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.limits import SIZES, product_rate
from benchmarks.race import Contender, Outcome, race, report
from benchmarks.text import MINILM, add_options, write_text
from jtcse_jax.encoding import bank_encoder
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank, stack, unstack
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.files import check_replaceable
from jtcse_jax.store import hf_tokenizer, saved_model
from jtcse_jax.store.exported import export
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.training.flops import Work, forward_flops

_CHECKED = 128  # sentences whose vectors are compared
_LEAST_COSINE = 0.9999
_COSINE = "cosine with ours"
_TEXT_TO_VECTOR, _DEVICE_ONLY = "ours, text to vector", "ours, device only"


@one_line_errors
def main() -> None:
    """Measures, prints a table and writes it as JSON."""
    options = _read_options()
    rows, failed = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = options.tokenizer if options.size else options.model
        text = write_text(options.text, vocabulary, folder / "text.txt", options.sentences)
        for towers in options.towers:
            model = folder / f"model{towers}"
            export(_model(options, towers), model)
            rows += _race(options, model, text, towers, failed)
    fields = {key: value for key, value in vars(options).items() if key != "output"}
    title = f"encode: {options.size or options.model}, {options.sentences:,} sentences"
    for row in rows:
        if row[_COSINE] is not None and not row[_COSINE] > _LEAST_COSINE:
            failed[f"{row['contender']}, towers {row['towers']}"] = (
                f"a vector has only cosine {row[_COSINE]:.5f} with ours, less than "
                f"{_LEAST_COSINE}: it encoded something else, do not compare its time."
            )
    report(title, rows, options.output, failed, options=fields)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MINILM)
    parser.add_argument(
        "--size", choices=SIZES, help="random weights of this size instead, with --tokenizer"
    )
    add_options(parser)
    parser.add_argument("--sentences", type=int, help="default: 4 of the encoder's parts, GPU 32")
    parser.add_argument("--towers", type=int, nargs="+", default=[1], help="copies of the tower")
    parser.add_argument("--pooling", choices=["cls", "mean"], default="cls")
    parser.add_argument("--max-len", type=int, default=64)
    parser.add_argument("--against", nargs="*", choices=list(_OPPONENTS), default=list(_OPPONENTS))
    parser.add_argument("--batch-size", type=int, nargs="+", help="of the opponents, a row each")
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu" if jax.default_backend() == "cpu" else "cuda",
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3, help="measured calls per process")
    parser.add_argument("--turns", type=int, default=2, help="processes per contender")
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    options.dtype = options.dtype or ("float32" if on_cpu else "bfloat16")
    options.batch_size = options.batch_size or ([16, 32] if on_cpu else [32, 256, 1024])
    part = bank_encoder.PART * jax.local_device_count()
    options.sentences = options.sentences or (4 if on_cpu else 32) * part
    return options


def _model(options: argparse.Namespace, towers: int) -> SavedModel:
    if options.size:
        bank = Bank(SIZES[options.size], 1, pooling=options.pooling)
        tokenizer = hf_tokenizer.find_tokenizer(options.tokenizer)
        hf_tokenizer.check_tokenizer(tokenizer, bank.architecture)
        stored = SavedModel(bank, bank.init(0), tokenizer, options.max_len, "a benchmark")
    else:
        stored = saved_model.load(options.model, pooling=options.pooling, max_len=options.max_len)
    return dataclasses.replace(
        stored,
        bank=dataclasses.replace(stored.bank, num_towers=towers),
        params=stack(unstack(stored.params) * towers),
        folder=None,
    )


def _race(
    options: argparse.Namespace, model: Path, text: Path, towers: int, failed: dict[str, str]
) -> list[dict[str, Any]]:
    shared = {"model": str(model), "text": str(text), "dtype": options.dtype}
    # JAX uses the CPU if that is asked for, and otherwise the available device.
    platform = {"JAX_PLATFORMS": "cpu"} if options.device == "cpu" else {}
    contenders = {
        _TEXT_TO_VECTOR: Contender(_text_to_vector, shared, platform),
        _DEVICE_ONLY: Contender(_device_only, shared, platform),
    }
    for name, size in product(options.against, options.batch_size):
        opponent = f"{name}, batches of {size}"
        arguments = shared | {"batch_size": size, "device": options.device}
        arguments["vectors"] = str(_vectors_file(model, opponent))
        contenders[opponent] = Contender(_OPPONENTS[name], arguments)
    lost: dict[str, str] = {}
    outcomes = race(contenders, options.rounds, turns=options.turns, failed=lost)
    for name in (_TEXT_TO_VECTOR, _DEVICE_ONLY):
        if name in lost:
            raise UserError(f"{name}: {lost[name]}")
    failed |= {f"{name}, towers {towers}": reason for name, reason in lost.items()}
    limit = outcomes[_DEVICE_ONLY].numbers["limit_seconds"]
    ours = outcomes[_TEXT_TO_VECTOR].median
    return [
        _row(name, towers, outcome, options, ours, limit) | {_COSINE: _least_cosine(model, name)}
        for name, outcome in outcomes.items()
    ]


def _row(
    name: str,
    towers: int,
    outcome: Outcome,
    options: argparse.Namespace,
    ours: float,
    limit: float,
) -> dict[str, Any]:
    return {
        "contender": name,
        "towers": towers,
        "dtype": options.dtype,
        "sentences/s": options.sentences / outcome.median,
        "fastest": options.sentences / min(outcome.seconds),
        "time, ours 1": outcome.median / ours,
        "% of floor": 100 * limit / outcome.median,
        "start and first, s": outcome.start_seconds + outcome.first_seconds,
        "peak GB": outcome.peak_bytes / 1e9,
        "peak of": outcome.peak_of,
    }


def _least_cosine(model: Path, name: str) -> float | None:
    """The least cosine of an opponent's vectors with ours, both minus the mean; None for ours."""
    if name in (_TEXT_TO_VECTOR, _DEVICE_ONLY):
        return None
    files = (_vectors_file(model, each) for each in (_TEXT_TO_VECTOR, name))
    return least_cosine(*map(np.load, files))


def least_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The least cosine of two vectors of one sentence, both minus the mean of ours; [n, D] each."""
    pairs = [vectors - ours.mean(axis=0) for vectors in (ours, theirs)]
    one, two = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in pairs)
    return float((one * two).sum(axis=1).min())


def _vectors_file(model: Path, name: str) -> Path:
    return model / f"vectors-{name}.npy"


def _sentences(text: str) -> list[str]:
    return Path(text).read_text(encoding="utf-8").splitlines()


# Ours.


def _text_to_vector(model: str, text: str, dtype: str) -> Callable[[], None]:
    sentences = _sentences(text)
    checked = _encoder(model, "float32").encode(sentences[:_CHECKED])
    np.save(_vectors_file(Path(model), _TEXT_TO_VECTOR), checked)
    encoder = _encoder(model, dtype)

    def work() -> None:
        encoder.encode(sentences)

    return work


def _device_only(model: str, text: str, dtype: str) -> Callable[[], dict[str, float]]:
    """The device's work in `encode`: inputs are already there, results stay there."""
    (bank,) = _encoder(model, dtype).banks
    sentences, batches = _sentences(text), []
    for start in range(0, len(sentences), bank_encoder.PART):
        calls = bank.place(sentences[start : start + bank_encoder.PART]).calls
        batches += [call.batch for call in calls]
    work = Work(*(sum(map(float, each)) for each in zip(*map(Work.of, batches), strict=True)))
    one = forward_flops(bank.bank.architecture, work, pooling=bank.bank.pooling)
    limit = bank.bank.num_towers * one / product_rate(dtype).median

    def work() -> dict[str, float]:
        jax.block_until_ready(
            [bank_encoder.embed(bank.bank, bank.mesh, bank.params, batch) for batch in batches]
        )
        return {"limit_seconds": limit}

    return work


def _encoder(model: str, dtype: str) -> SentenceEncoder:
    loaded = saved_model.load(model)
    bank = dataclasses.replace(loaded.bank, compute_dtype=dtype)
    return SentenceEncoder.of(dataclasses.replace(loaded, bank=bank))


# Theirs.


def _sentence_transformers(
    model: str, text: str, dtype: str, batch_size: int, device: str, vectors: str
) -> Callable[[], None]:
    """The library's own `encode`, which sorts the sentences by length itself."""
    import torch
    from sentence_transformers import SentenceTransformer

    from jtcse_jax.store.sum_of_towers import SumOfTowers

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    if (Path(model) / "sum_of_towers.py").is_file():
        encoder = SentenceTransformer(modules=[SumOfTowers.load(model)], device=device)
    else:
        encoder = SentenceTransformer(model, device=device)
    sentences = _sentences(text)

    def encode(sentences: list[str]) -> np.ndarray:
        return encoder.encode(sentences, batch_size=batch_size, show_progress_bar=False)

    np.save(vectors, encode(sentences[:_CHECKED]))
    encoder.to(getattr(torch, dtype))

    def work() -> None:
        encode(sentences)

    return work


def _length_sorted_torch(
    model: str, text: str, dtype: str, batch_size: int, device: str, vectors: str
) -> Callable[[], None]:
    """Plain transformers: sentences sorted by length, batches padded to their longest sentence."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from jtcse_jax.store.sum_of_towers import SumOfTowers

    description = saved_model.read_description(Path(model))
    paths = [Path(model) / name for name in description["towers"]]
    tokenizer = AutoTokenizer.from_pretrained(paths[0])
    towers = [AutoModel.from_pretrained(path, dtype=torch.float32) for path in paths]
    limit = description["serving_length"]
    encoder = SumOfTowers(towers, tokenizer, pooling=description["pooling"], max_seq_length=limit)
    encoder = encoder.to(device).eval()
    sentences = _sentences(text)

    @torch.inference_mode()
    def encode(sentences: list[str]) -> np.ndarray:
        tokens = tokenizer(sentences, truncation=True, max_length=limit)["input_ids"]
        by_length = np.argsort([-len(ids) for ids in tokens], kind="stable")
        parts = []
        for start in range(0, len(tokens), batch_size):
            ids = [tokens[index] for index in by_length[start : start + batch_size]]
            padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)
            parts.append(encoder(dict(padded))["sentence_embedding"])
        sorted_vectors = torch.cat(parts).float().cpu().numpy()
        return sorted_vectors[np.argsort(by_length)]

    np.save(vectors, encode(sentences[:_CHECKED]))
    encoder.to(getattr(torch, dtype))

    def work() -> None:
        encode(sentences)

    return work


_OPPONENTS = {
    "sentence-transformers": _sentence_transformers,
    "length-sorted-torch": _length_sorted_torch,
}


if __name__ == "__main__":
    main()
