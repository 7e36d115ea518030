"""What is drawn for each kind of reader, and what reads it: targets of `fuzz.py`."""

import contextlib
import dataclasses
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from damage import (
    Files,
    any_bytes,
    damaged,
    json_bytes,
    odd,
    one_or_two,
    safetensors,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Made = tuple[st.SearchStrategy[Files], Callable[[], None]]  # what is drawn, and what reads it


@contextlib.contextmanager
def written(folder: Path, files: Files):
    """The files in the folder; afterwards it is as it was."""
    before = {name: path.read_bytes() for name in files if (path := folder / name).is_file()}
    try:
        _write(folder, files)
        yield
    finally:
        _write(folder, {name: before.get(name) for name in files})


def _write(folder: Path, files: Files) -> None:
    for name, data in files.items():
        if data is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(data)


# Targets


def text(folder: Path) -> Made:
    """Training text: plain, packed, pairs; each with what the suffix says and with anything."""
    from jtcse_jax.data.sources import open_source

    lines = st.lists(
        st.sampled_from([b"", b"a b", b"\t", b"a\tb", b"a\tb\tc", b"\xff", b"\xef\xbb\xbfa", b"\r"])
        | st.binary(max_size=20),
        max_size=6,
    ).map(b"\n".join)
    packings = {".gz": gzip.compress, ".xz": lzma.compress, "": bytes}

    @st.composite
    def files(draw) -> Files:
        suffix = draw(st.sampled_from(sorted(packings)))
        kind = draw(st.sampled_from([".txt", ".tsv"]))
        data = packings[suffix](draw(lines))
        if draw(st.booleans()):
            data += packings[suffix](draw(lines))
        if draw(st.booleans()):
            data = draw(damaged(data))
        return {f"a{kind}{suffix}": data}

    def read() -> None:
        source = open_source(str(folder / "a.t*"))
        for shard in range(source.num_shards):
            for _ in source.read_shard(shard):
                pass
        for _ in source.read():
            pass
        source.fingerprint()

    return files(), read


def sts(folder: Path) -> Made:
    """Scored pairs in every layout."""
    from jtcse_jax.evaluation.sts_data import load_pairs, load_sts
    from jtcse_jax.evaluation.transfer_data import load_transfer

    sick = b"pair_ID\tsentence_A\tsentence_B\trelatedness_score\n1\ta\tb\t3\n2\tc\td\t1\n"
    mrpc = b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\ta\tb"
    files = {
        "pairs.tsv": b"a\tb\t1\nc\td\t2.5\n",
        "STS/STSBenchmark/sts-test.csv": b"g\tf\t1\t2\t3.5\ta b\tc\ng\tf\t1\t2\t1\tc\td\tx\n",
        "SICK/SICK_test_annotated.txt": sick,
        "TREC/train_5500.label": b"NUM:dist How far ?\nLOC:x Where ?\n",
        "TREC/TREC_10.label": b"HUM:y Who ?\n",
        "MRPC/msr_paraphrase_train.txt": mrpc,
        "MRPC/msr_paraphrase_test.txt": mrpc,
    }
    for subset in ("FNWN", "headlines", "OnWN"):
        files[f"STS/STS13-en-test/STS.input.{subset}.txt"] = b"a\tb\nc\td\ne\tf\n"
        files[f"STS/STS13-en-test/STS.gs.{subset}.txt"] = b"1\n\n2\n"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    def read() -> None:
        for load, path in ((load_pairs, "pairs.tsv"), (load_sts, ""), (load_transfer, "")):
            with contextlib.suppress(_user_error()):
                load(folder / path)

    return one_or_two({name: damaged(data) | any_bytes for name, data in files.items()}), read


def config(folder: Path) -> Made:
    """Config files: literals of every kind in every field, and text without a letter in it."""
    from jtcse_jax import config as sections
    from jtcse_jax.config_file import load_config_file, to_json
    from jtcse_jax.store.workdir import CONFIG
    from jtcse_jax.training.run_record import check_config

    kinds = {
        kind.__name__: [field.name for field in dataclasses.fields(kind)]
        for kind in vars(sections).values()
        if dataclasses.is_dataclass(kind)
    }
    sections_of = {
        field.name: type(getattr(section, field.name)).__name__
        for section in (sections.Config(), sections.ModelConfig())
        for field in dataclasses.fields(section)
        if dataclasses.is_dataclass(getattr(section, field.name))
    }
    # Never a name, since what a config file calls is run; 1e999 is infinite.
    literal = odd.map(repr).map(lambda text: re.sub("nan|inf", "1e999", text))

    @st.composite
    def call(draw, kind: str) -> str:
        names = draw(st.lists(st.sampled_from([*kinds[kind], "x"]), max_size=3, unique=True))
        values = [
            draw(call(sections_of[name]) if name in sections_of else literal) for name in names
        ]
        parts = [f"{name}={value}" for name, value in zip(names, values, strict=True)]
        return f"{kind}({', '.join(parts)})"

    header = "from jtcse_jax.config import *\nconfig = "
    program = call("Config").map(lambda text: f"{header}{text}\n".encode(errors="surrogatepass"))
    marks = st.text("()[]{}:;,.\n\t '\"\\#=0123456789-+*/%@\r\0é\u2028", max_size=40)
    before = json.loads(to_json(sections.Config()))

    def read() -> None:
        fields = sections.Config()
        with contextlib.suppress(_user_error()):
            fields = load_config_file(folder / "config.py")
            to_json(fields)
        check_config(folder, fields)

    return one_or_two(
        {"config.py": program | marks.map(str.encode), CONFIG: json_bytes(before)}
    ), read


def weights(folder: Path) -> Made:
    """A model's folder: config, index and weights, description, tokenizer."""
    from safetensors.numpy import load_file, save
    from tiny_models import tiny_model

    from jtcse_jax.store import saved_model
    from jtcse_jax.store.exported import export

    export(tiny_model(1), folder / "model")
    model = folder / "model"
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for shard, held in shards.items():
        (model / shard).write_bytes(save({name: tensors[name] for name in held}))
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    strategies = {
        f"model/{name}": json_bytes(json.loads((model / name).read_text()))
        for name in (
            *("config.json", "tokenizer.json", "tokenizer_config.json"),
            *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),
            "config_sentence_transformers.json",
            "model.safetensors.index.json",
        )
    }
    for name in ("model.safetensors", "model-1.safetensors"):
        strategies[f"model/{name}"] = safetensors((model / name).read_bytes())
    return one_or_two(strategies), lambda: saved_model.load(model)


def ensemble(folder: Path) -> Made:
    """Descriptions of ensembles, one in the other."""
    from tiny_models import tiny_model

    from jtcse_jax.store.ensemble import load_members
    from jtcse_jax.store.exported import export

    export(tiny_model(1), folder / "model")
    inner = {"members": [{"model": "model", "weight": 1.0, "pooling": "cls", "max_len": 9}]}
    outer = {"members": [{"model": "inner.json", "weight": 2}, {"model": "model#0", "weight": 0.5}]}
    for name, content in (("inner.json", inner), ("outer.json", outer)):
        (folder / name).write_text(json.dumps(content))
    strategies = {"inner.json": json_bytes(inner), "outer.json": json_bytes(outer)}
    return one_or_two(strategies), lambda: load_members(folder / "outer.json")


def manifests(folder: Path) -> Made:
    """The files of a step and its manifest: what decides on its use."""
    from jtcse_jax.store import manifest

    directory, _ = _two_steps(folder)

    def read() -> None:
        found = manifest.read(directory / "2") or {}
        assert all(type(score) is float for score in found.get("metrics", {}).values())
        wanted = {"params": {"pooler.bias": "float32[1, 16]"}}
        assert all(isinstance(line, str) for line in manifest.misfits(directory / "2", wanted))
        problem = manifest.problem(directory / "2")
        assert problem is None or isinstance(problem, str)

    return _damaged_step(folder, directory / "2"), read


def checkpoint(folder: Path) -> Made:
    """The same, opened and restored by orbax."""
    from jtcse_jax.store import manifest
    from jtcse_jax.store.checkpoint import Checkpoints

    directory, wanted = _two_steps(folder)

    def read() -> None:
        with Checkpoints(directory, read_only=True) as checkpoints:
            checkpoints.best_step()
            checkpoints.restore(2, params=wanted)
        assert manifest.problem(directory / "2") is None

    return _damaged_step(folder, directory / "2"), read


def _two_steps(folder: Path) -> tuple[Path, Any]:
    """The checkpoints of a workdir, and the parameters that they hold."""
    from tiny_models import tiny_model, write_run

    from jtcse_jax.store.workdir import CHECKPOINTS

    model = tiny_model(1)
    return write_run(folder / "run", model, {1: 0.5, 2: 0.4}) / CHECKPOINTS, model.bank.abstract()


def _damaged_step(folder: Path, step: Path) -> st.SearchStrategy[Files]:
    files = {
        path.relative_to(folder).as_posix(): damaged(path.read_bytes()) | any_bytes
        for path in step.rglob("*")
        if path.is_file()
    }
    return one_or_two(files)


TARGETS = {
    target.__name__: target
    for target in (
        text,
        sts,
        config,
        weights,
        ensemble,
        manifests,
        checkpoint,
    )
}


def _user_error() -> type[Exception]:
    from jtcse_jax.errors import UserError

    return UserError


def make_check(target: str, folder: Path, **options) -> Callable[[], None]:
    """A test of hypothesis that reads damaged files in the folder."""
    strategy, read = TARGETS[target](folder)

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck), **options)
    @given(strategy)
    def check(files: Files) -> None:
        with written(folder, files), contextlib.suppress(_user_error()):
            read()

    return check
