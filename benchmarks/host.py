"""The host's work: tokenising, opening the cache, and feeding the device.

    python -m benchmarks.host --text sentences.txt --output host.json

It needs Linux, because memory is read from /proc. Without `--text` the text is English-like: words
of the tokenizer's vocabulary, drawn by Zipf's law. The comparisons need `pip install datasets
torch`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.race import Contender, Outcome, memory, race, report
from benchmarks.text import add_options, write_text
from jtcse_jax.config import DataConfig
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.tokens import TokenCache, tokenize
from jtcse_jax.runtime import sharding
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.files import check_replaceable
from jtcse_jax.store import hf_tokenizer

_MB = 2**20
_RANDOM_SENTENCES = 10_000
_MAPPED_AT_ONCE = 1000  # the default of `datasets.map`

Numbers = dict[str, float]


@one_line_errors
def main() -> None:
    """Measures, prints two tables and writes them as JSON."""
    options = _read_options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = write_text(options.text, options.tokenizer, folder / "text.txt", options.sentences)
        rows = _tokenising(options, text, folder / "cache")
        rows += _opening(next((folder / "cache").iterdir()), options.rounds)
        sample = write_text(options.text, options.tokenizer, folder / "sample.txt", options.sample)
        rows += _tokenising_compared(options, sample)
        feeding = _feeding(options, next((folder / "cache").iterdir()))
    fields = {key: value for key, value in vars(options).items() if key != "output"}
    report("host: text", rows, None)
    report("host: batches", feeding, options.output, text=rows, options=fields)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--sentences", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=50_000, help="sentences of the comparison")
    parser.add_argument("--max-len", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--batches", type=int, default=300, help="batches per round")
    parser.add_argument("--step-ms", type=float, default=13.0, help="time of the simulated step")
    parser.add_argument("--rounds", type=int, default=3, help="measured calls per process")
    parser.add_argument("--turns", type=int, default=2, help="processes per contender")
    parser.add_argument("--ours-only", action="store_true", help="leave out the comparisons")
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    return parser.parse_args()


# Tokenising and opening.


def _tokenising(options: argparse.Namespace, text: Path, cache: Path) -> list[dict[str, Any]]:
    arguments = {"text": str(text), "cache": str(cache), **_tokenizer(options)}
    outcome = race({"ours": Contender(_tokenise, arguments)}, rounds=1, warmup=0, turns=1)["ours"]
    numbers = outcome.numbers
    return [
        _row(f"tokenise {options.sentences:,} sentences", "s", outcome.median, 60),
        _row("tokens a sentence", "", numbers["mean_length"], None),
        _row("processor time of all threads", "s", numbers["processor_seconds"], None),
        _row("memory it took, at most", "MB", numbers["peak_growth"] / _MB, None),
        _row("cache, files of a sentence", "bytes", numbers["cache_bytes"], 75),
    ]


def _tokenise(text: str, cache: str, tokenizer: str, max_len: int) -> Callable[[], Numbers]:
    source = open_source(text)
    loaded = hf_tokenizer.find_tokenizer(tokenizer)

    def work() -> Numbers:
        before, used = memory("VmRSS"), time.process_time()
        made = tokenize(source, loaded, max_len, cache, progress=False)
        size = sum(file.stat().st_size for file in Path(cache).glob("*/*"))
        return {
            "mean_length": made.stats["mean_length"],
            "processor_seconds": time.process_time() - used,
            "peak_growth": max(0, memory("VmHWM") - before),
            "cache_bytes": size / len(made),
        }

    return work


def _opening(folder: Path, rounds: int) -> list[dict[str, Any]]:
    contender = Contender(_open, {"folder": str(folder)})
    outcomes = [race({"ours": contender}, 1, warmup=0, turns=1)["ours"] for _ in range(rounds)]
    numbers = {key: _median(outcomes, key) for key in outcomes[0].numbers}
    return [
        _row("open the cache", "ms", numbers["seconds"] * 1e3, 10),
        _row("growth of the resident set, opened", "MB", numbers["opened"] / _MB, None),
        _row(f"... and {_RANDOM_SENTENCES:,} sentences read", "MB", numbers["read"] / _MB, 200),
        _row("... of that, not of files", "MB", numbers["anonymous"] / _MB, None),
        _row("a random sentence", "us", numbers["sentence_seconds"] * 1e6, None),
    ]


def _open(folder: str) -> Callable[[], Numbers]:
    def work() -> Numbers:
        before, anonymous = memory("VmRSS"), memory("RssAnon")
        began = time.perf_counter()
        cache = TokenCache(folder)
        opened = time.perf_counter()
        after = memory("VmRSS")
        indices = np.random.default_rng(0).integers(len(cache), size=_RANDOM_SENTENCES).tolist()
        reading = time.perf_counter()
        for index in indices:
            cache.sentence(index)
        return {
            "seconds": opened - began,
            "opened": after - before,
            "sentence_seconds": (time.perf_counter() - reading) / len(indices),
            "read": memory("VmRSS") - before,
            "anonymous": memory("RssAnon") - anonymous,
        }

    return work


def _tokenising_compared(options: argparse.Namespace, text: Path) -> list[dict[str, Any]]:
    if options.ours_only:
        return []
    arguments = {"text": str(text), **_tokenizer(options)}
    outcomes = race(
        {"ours": Contender(_tokenise_anew, arguments), "datasets": Contender(_map, arguments)},
        options.rounds,
        warmup=0,
        turns=options.turns,
    )
    seconds = {name: outcome.median for name, outcome in outcomes.items()}
    return [
        _row(f"tokenise {options.sample:,} sentences", "s", seconds["ours"], None),
        _row("... by datasets.map and the same tokenizer", "s", seconds["datasets"], None),
        _row("... times ours", "", seconds["datasets"] / seconds["ours"], None),
    ]


def _tokenise_anew(text: str, tokenizer: str, max_len: int) -> Callable[[], None]:
    loaded = hf_tokenizer.find_tokenizer(tokenizer)

    def work() -> None:
        with tempfile.TemporaryDirectory() as cache:
            tokenize(open_source(text), loaded, max_len, cache, progress=False)

    return work


def _map(text: str, tokenizer: str, max_len: int) -> Callable[[], None]:
    import datasets

    datasets.disable_progress_bars()
    loaded = hf_tokenizer.find_tokenizer(tokenizer)

    def encode(block: dict[str, list[str]]) -> dict[str, Any]:
        return loaded(block["text"], truncation=True, max_length=max_len)

    def work() -> None:
        with tempfile.TemporaryDirectory() as cache:
            rows = datasets.load_dataset("text", data_files=text, split="train", cache_dir=cache)
            rows.map(encode, batched=True, batch_size=_MAPPED_AT_ONCE, remove_columns=["text"])

    return work


# Feeding the device.


def _feeding(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for size in options.batch:
        common = {"folder": str(folder), "size": size, "count": options.batches}
        contenders = {
            "ours": Contender(_feed, common | {"step": options.step_ms / 1e3}),
        }
        if not options.ours_only:
            collated = common | {"tokenizer": options.tokenizer}
            contenders["torch loader"] = Contender(_collate, collated)
        for name, outcome in race(contenders, options.rounds, turns=options.turns).items():
            numbers = {"batch": size, **outcome.numbers}
            rows.append({"feeding": name} | {key: numbers.get(key) for key in _FEEDING})
    return rows


_FEEDING = (
    "batch",
    "start s",
    "in turn ms",
    "read ahead ms",
    "place ms",
    "wait ms",
    "wait % of step",
    "wait + place %",
)


def _feed(folder: str, size: int, count: int, step: float) -> Callable[[], Numbers]:
    cache, mesh = TokenCache(folder), sharding.make_mesh()
    began = time.perf_counter()
    batches = PackedBatches(
        cache,
        DataConfig(batch_size=size),
        seed=0,
        row_multiple=sharding.row_shards(mesh),
    )
    start = time.perf_counter() - began
    count = min(count, batches.steps_per_epoch // 2)

    def work() -> Numbers:
        in_turn = _drained(batches[number] for number in range(count))
        ahead = _drained(batches.iterate(0, count))
        waits, places = _consume(batches, mesh, count, step)
        wait, place = float(np.mean(waits)), float(np.mean(places))
        return {
            "start s": start,
            "in turn ms": in_turn / count * 1e3,
            "read ahead ms": ahead / count * 1e3,
            "place ms": place * 1e3,
            "wait ms": wait * 1e3,
            "wait % of step": wait / step * 100,
            "wait + place %": (wait + place) / step * 100,
        }

    return work


def _consume(
    batches: PackedBatches, mesh: jax.sharding.Mesh, count: int, step: float
) -> tuple[list[float], list[float]]:
    """Seconds to wait for each batch, and to place it, for a consumer that then sleeps a step.

    The first batches are not counted. The trainer dispatches a step while the device still runs the
    previous one, which hides both, so this is an upper bound of the device's wait.
    """
    waits, places = [], []
    ahead = batches.iterate(0, count)
    for _ in range(count):
        began = time.perf_counter()
        _, batch = next(ahead)
        got = time.perf_counter()
        jax.block_until_ready(sharding.place_batch(mesh, batch))
        placed = time.perf_counter()
        waits.append(got - began)
        places.append(placed - got)
        time.sleep(step)
    skipped = min(10, count // 2)
    return waits[skipped:], places[skipped:]


def _collate(folder: str, size: int, count: int, tokenizer: str) -> Callable[[], Numbers]:
    """The same sentences, each twice, from memory, through DataCollatorWithPadding."""
    from torch.utils.data import DataLoader
    from transformers import DataCollatorWithPadding

    cache = TokenCache(folder)
    loaded = hf_tokenizer.find_tokenizer(tokenizer)
    count = min(count, len(cache) // size)
    sentences = [{"input_ids": cache.sentence(i).tolist()} for i in range(count * size)]
    pad = DataCollatorWithPadding(loaded)

    def collate(items: list[dict[str, list[int]]]) -> Any:
        return pad([item for item in items for _ in range(2)])

    loader = DataLoader(sentences, batch_size=size, shuffle=True, collate_fn=collate)

    def work() -> Numbers:
        return {"in turn ms": _drained(loader) / count * 1e3}

    return work


# Helpers.


def _tokenizer(options: argparse.Namespace) -> dict[str, Any]:
    return {"tokenizer": options.tokenizer, "max_len": options.max_len}


def _row(measure: str, unit: str, value: float, target: float | None) -> dict[str, Any]:
    return {"measure": measure, "unit": unit, "value": value, "target, at most": target}


def _median(outcomes: list[Outcome], key: str) -> float:
    return float(np.median([outcome.numbers[key] for outcome in outcomes]))


def _drained(batches: Iterable[Any]) -> float:
    """Seconds to iterate over all of them without keeping any."""
    began = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
