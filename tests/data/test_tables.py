"""Tables read by column, compared with what pandas, pyarrow and csv read from the same files."""

import csv
import gzip
import lzma
import os
import threading
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jtcse_jax.data import arrow_tables, text_files
from jtcse_jax.data.sources import open_source
from jtcse_jax.errors import UserError

FIRST = ["One, two.", 'He said "no".', "line\nbreak", "é 你\u2028好", "tab\there", '"all"', "7"]
SECOND = [f"second {i}" for i in range(len(FIRST))]
FRAME = pd.DataFrame({"n": range(len(FIRST)), "a b": FIRST, "second": SECOND})


def write_arrow(frame, path):
    table = pa.Table.from_pandas(frame)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS = {
    "a.csv": lambda frame, path: frame.to_csv(path, index=False),
    "indexed.csv": lambda frame, path: frame.to_csv(path),
    "excel.csv": lambda frame, path: frame.to_csv(path, index=False, sep=";", encoding="utf-8-sig"),
    "all.CSV": lambda frame, path: frame.to_csv(path, index=False, quoting=csv.QUOTE_ALL),
    "a.csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "a.csv.xz": lambda frame, path: frame.to_csv(path, index=False),
    "a.jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "a.jsonl.gz": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "lines.json": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "array.json": lambda frame, path: frame.to_json(path, orient="records"),
    "pretty.json": lambda frame, path: frame.to_json(path, orient="records", indent=2),
    "a.parquet": lambda frame, path: frame.to_parquet(path, row_group_size=2),
    "a.feather": lambda frame, path: frame.to_feather(path),
    "a.arrow": write_arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_columns_are_those_that_pandas_wrote(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](FRAME, path)
    one = open_source(str(path), ["a b"])
    assert (one.views, list(one.read()), one.blank) == (1, FIRST, 0)
    two = open_source(str(path), ("second", "a b"))
    expected = [text for pair in zip(SECOND, FIRST, strict=True) for text in pair]
    assert (two.views, list(two.read())) == (2, expected)
    with pytest.raises(UserError, match=rf"{name} is a table with the columns .*a b, second"):
        open_source(str(path))
    with pytest.raises(UserError, match=rf"{name} has no column 'text'; .*a b, second"):
        open_source(str(path), ["text"])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "array.json", "a.parquet", "a.arrow"])
def test_the_format_is_known_by_the_content_under_another_name(tmp_path, name):
    WRITERS[name](FRAME, tmp_path / name)
    path = (tmp_path / name).rename(tmp_path / "text.data")
    assert list(open_source(str(path), ["a b"]).read()) == FIRST
    if name != "a.csv":  # whose lines could be sentences
        with pytest.raises(UserError, match="text.data is a table with the columns n, a b"):
            open_source(str(path))


def test_empty_records_are_skipped_and_counted(tmp_path):
    frame = pd.DataFrame({"a": ["x", None, "  ", "y", "z"], "b": ["1", "2", "3", "", "5"]})
    for name, write in WRITERS.items():
        write(frame.astype(object), tmp_path / name)
        source = open_source(str(tmp_path / name), ["a"])
        assert (list(source.read()), source.blank) == (["x", "y", "z"], 2), name
        source = open_source(str(tmp_path / name), ["a", "b"])
        assert (list(source.read()), source.blank) == (["x", "1", "z", "5"], 3), name
    for name, text in {
        "a.csv": "t,u\n\na,b\n  \nc,d\n\n",
        "a.jsonl": '\n{"t":"a"}\n\n{"t":"c"}\n',
    }.items():
        (tmp_path / name).write_text(text)
        source = open_source(str(tmp_path / name), ["t"])
        assert list(source.read()) == ["a", "c"] and source.blank in (2, 3)


def test_quotes_between_tabs_are_removed_only_where_a_csv_writer_made_them(tmp_path):
    frame = pd.DataFrame({"a": ['He said "no".', '"all"', "x"], "b": ["1", 'in "the" middle', "3"]})
    frame.to_csv(tmp_path / "quoted.tsv", sep="\t", index=False)
    assert '"He said ""no""."' in (tmp_path / "quoted.tsv").read_text()
    read = list(open_source(str(tmp_path / "quoted.tsv"), ["a", "b"]).read())
    assert read == frame.to_numpy().ravel().tolist()
    lines = ["a\tb", '"She said no.\tone', 'two" or three\t"all"', 'a "b" c\t4"']
    (tmp_path / "raw.tsv").write_text("\n".join(lines))
    expected = pd.read_csv(tmp_path / "raw.tsv", sep="\t", quoting=csv.QUOTE_NONE)
    read = list(open_source(str(tmp_path / "raw.tsv"), ["a", "b"]).read())
    assert read == expected.to_numpy().ravel().tolist()


def test_a_header_is_not_taken_for_a_pair(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("Sentence_1\tsentence2\na\tb\n")
    with pytest.raises(UserError, match=r"pairs.tsv:1 is a header.*--columns Sentence_1 sentence2"):
        open_source(str(path))
    assert list(open_source(str(path), ["sentence2", "Sentence_1"]).read()) == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", 'a,b\nx,y\n"open,y\nz,w\n', r"a.csv:4: not CSV"),
        ("a.csv", "a,b\nx,y\nz\n", r"a.csv:3: 1 columns, but the header has 2"),
        ("a.csv", "a,a\nx,y\n", r"two columns 'a'"),
        ("a.csv", b"a,b\nx,\xff\n", r"a.csv:2: byte 3 .*UTF-8"),
        ("a.tsv", "a\tb\nx\ty\tz\n", r"a.tsv:2: 3 columns"),
        ("a.jsonl", '{"a": "x"}\n{"a": \n', r"a.jsonl:2: not a JSON object"),
        ("a.jsonl", '{"a": "x"}\n["x"]\n', r"a.jsonl:2: not a JSON object"),
        ("a.jsonl", '{"a": "x"}\n{"a": 5}\n', r"a.jsonl:2: 5 is not text"),
        ("a.jsonl", '{"a": "x"}\n{"a": "\\ud83d"}\n', r"a.jsonl:2: .*surrogate"),
        ("a.json", '[{"a": "x"}, {"a": "y"}', r"a.json: not JSON after record 2"),
        ("a.json", '[{"a": "x"}, {"a": ', r"a.json: not JSON after record 1"),
        ("a.json", '[{"a": "x"}, ["a"]]', r"a.json: record 2 is not a JSON object"),
        ("a.json", '{"data": [{"a": "x"}]}', r"no column 'a'; its columns are data"),
        ("a.parquet", b"PAR1 and no more PAR1", r"a.parquet: cannot be read"),
        ("a.arrow", b"ARROW1 and no more", r"a.arrow: cannot be read"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), r"a.parquet.gz.*decompress"),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=problem) as refused:
        list(open_source(str(path), ["a"]).read())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (gzip.compress(b"a\n" * 99, mtime=0), "compressed by gzip"),
        (lzma.compress(b"a\n" * 99), "compressed by xz"),
        ("a sentence\n".encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04\xff\xff\n", "zip file"),
        (b"%PDF-1.4\n\xe2\xe3\n", "PDF"),
        ("café\n".encode("latin-1"), "a.txt:1: byte 4 .*iconv"),
    ],
)
def test_what_is_not_text_is_named(tmp_path, content, problem):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        list(open_source(str(tmp_path / "a.txt")).read())


def test_columns_of_what_has_none_are_refused(tmp_path):
    for spec in ("stdlib", "hub:a:train:b", "tfds:a:train:b"):
        with pytest.raises(UserError, match="leave out the columns text"):
            open_source(spec, ["text"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_shards_together_are_the_table(tmp_path, monkeypatch, name):
    monkeypatch.setattr(text_files, "_PART_BYTES", 100)
    monkeypatch.setattr(arrow_tables, "_PART_ROWS", 3)
    WRITERS[name](FRAME, tmp_path / name)
    source = open_source(str(tmp_path / name), ["a b", "second"])
    shards = [list(source.read_shard(number)) for number in range(source.num_shards)]
    assert len(shards) > 1 and sum(shards, []) == list(source.read())
    numbers = open_source(str(tmp_path / name), ["n"])
    with pytest.raises(UserError, match=r"(a.jsonl:|record )[567]: [456] is not"):
        list(numbers.read_shard(numbers.num_shards - 1))


def test_the_fingerprint_is_that_of_the_content_and_the_columns(tmp_path):
    for name in ("x.csv", "y.csv"):
        FRAME.to_csv(tmp_path / name, index=False)
    prints = [
        open_source(str(tmp_path / name), columns).fingerprint()
        for name, columns in [
            ("x.csv", ["a b"]),
            ("y.csv", ("a b",)),
            ("x.csv", ["second"]),
            ("x.csv", ["a b", "second"]),
        ]
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 3


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet", "arrow"])
def test_memory_does_not_grow_with_the_table(tmp_path, suffix):
    """Nor with a Parquet file's single row group, of which the first row must not wait."""
    rng = np.random.default_rng(0)
    words = [bytes(row).decode() for row in rng.integers(97, 123, (20_000, 500), np.uint8)]
    frame, path = pd.DataFrame({"a": words}), tmp_path / f"big.{suffix}"
    if suffix == "tsv":
        frame.to_csv(path, sep="\t", index=False)
    else:
        WRITERS.get(f"a.{suffix}", WRITERS["array.json"])(frame, path)
    before = held = pa.total_allocated_bytes()
    tracemalloc.start()
    for count, sentence in enumerate(open_source(str(path), ["a"]).read()):
        assert sentence == words[count]
        held = max(held, pa.total_allocated_bytes())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count + 1 == len(words) and path.stat().st_size > 10**7 * 0.99
    assert peak < 3e6 and held - before < 3e6


def test_a_pipe_is_copied_once_and_read_as_often_as_needed(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = "".join(f"sentence {i}\n" for i in range(50_000))
    writer = threading.Thread(target=pipe.write_text, args=[content])
    writer.start()
    source = open_source(str(pipe))
    writer.join()
    for again in (source, open_source(str(pipe))):
        assert "".join(f"{line}\n" for line in again.read()) == content
    assert source.fingerprint() == again.fingerprint()


def test_a_pipe_of_a_table_is_read_by_its_columns(tmp_path):
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        WRITERS[name](FRAME, tmp_path / name)
        pipe = tmp_path / f"pipe {name[2:]}"
        os.mkfifo(pipe)
        content = (tmp_path / name).read_bytes()
        writer = threading.Thread(target=pipe.write_bytes, args=[content])
        writer.start()
        assert list(open_source(str(pipe), ["a b"]).read()) == FIRST
        writer.join()


def test_what_datasets_saved_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_pandas(FRAME)
    whole.select([3, 1, 2]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole, test=whole.select([0])).save_to_disk(tmp_path / "splits")

    def read(spec):
        return list(open_source(f"hub:{tmp_path}/{spec}").read())

    assert read("one:train:a b") == [FIRST[i] for i in (3, 1, 2)]
    assert read("one:train[1:]:a b") == [FIRST[i] for i in (1, 2)]
    assert read("splits:train:a b") == FIRST and read("splits:test:second") == SECOND[:1]
    assert read("splits:test:second,a b") == [SECOND[0], FIRST[0]]
    file = next((tmp_path / "splits" / "train").glob("*.arrow"))
    assert read(f"{file.relative_to(tmp_path)}:train:a b") == FIRST
    assert list(open_source(str(file), ["a b"]).read()) == FIRST
    for spec, problem in {
        "splits:dev:a b": "no split dev; it has train, test",
        "one:train:text": "there is no field text; it has a b, n, second",
        "one:train:n": "record 0: 3 is not text",
    }.items():
        with pytest.raises(UserError, match=problem):
            read(spec)
    with pytest.raises(UserError, match=f"hub:{tmp_path}/one:train:FIELD"):
        open_source(str(tmp_path / "one"))
