"""Every kind of source read back, and one clear line for every kind of bad input."""

import gzip
import json
import lzma
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from jtcse_jax.data import sources
from jtcse_jax.data.sources import open_source
from jtcse_jax.errors import UserError

TEXT = "  The first sentence. \n\nThe second, with an é.\r\n   \n\tThe third\n"
SENTENCES = ["The first sentence.", "The second, with an é.", "The third"]


def read(spec):
    return list(open_source(str(spec)).read())


def write(path, text, opener=open):
    with opener(path, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("name", "opener"), [("a.txt", open), ("a.txt.gz", gzip.open), ("a.xz", lzma.open)]
)
def test_text_is_stripped_and_blank_lines_are_counted(tmp_path, name, opener):
    source = open_source(str(write(tmp_path / name, TEXT, opener)))
    assert source.views == 1
    for _ in range(2):
        assert list(source.read()) == SENTENCES
        assert source.blank == 2


def test_a_glob_is_read_in_sorted_order(tmp_path):
    for name in ("c", "a", "b"):
        write(tmp_path / f"{name}.txt", f"sentence {name}\n")
    write(tmp_path / "other.md", "not this\n")
    (tmp_path / "folder.txt").mkdir()
    assert read(tmp_path / "*.txt") == ["sentence a", "sentence b", "sentence c"]


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", TEXT)
    assert read("~/a.txt") == SENTENCES


def test_brackets_in_the_name_of_a_file_are_no_glob(tmp_path):
    assert read(write(tmp_path / "a[1].txt", TEXT)) == SENTENCES


def test_only_newlines_end_a_line_and_a_byte_order_mark_is_dropped(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\xe2\x80\xa8two\x0cthree\xc2\x85four\nfive")
    assert read(path) == ["one\u2028two\x0cthree\x85four", "five"]


@pytest.mark.parametrize(("name", "opener"), [("p.tsv", open), ("p.tsv.xz", lzma.open)])
def test_pairs_come_view_by_view(tmp_path, name, opener):
    source = open_source(str(write(tmp_path / name, "a cat \t the cat\n\nb\tc\n", opener)))
    assert source.views == 2
    assert list(source.read()) == ["a cat", "the cat", "b", "c"]
    assert source.blank == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"good\nbad \xff\xfe\n", r"a\.txt:2: byte 5 of the line is not UTF-8.*iconv"),
        (b"", r"a\.txt is empty"),
        (b"\n  \n", r"a\.txt holds no sentence"),
    ],
)
def test_bad_text_is_refused(tmp_path, content, problem):
    with pytest.raises(UserError, match=problem):
        read(write(tmp_path / "a.txt", content))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("only one", r"p\.tsv:3: 1 tab-separated column,"),
        ("a\tb\tc", r"p\.tsv:3: 3 tab-separated columns,"),
        ("a\t  ", r"p\.tsv:3: an empty column"),
        ("\tb", r"p\.tsv:3: an empty column"),
    ],
)
def test_a_line_that_is_no_pair_is_refused(tmp_path, line, problem):
    with pytest.raises(UserError, match=problem):
        read(write(tmp_path / "p.tsv", f"a\tb\n\n{line}\n"))


@pytest.mark.parametrize(
    ("name", "opener"), [("a.txt.gz", gzip.compress), ("a.txt.xz", lzma.compress)]
)
def test_a_broken_archive_is_refused(tmp_path, name, opener):
    content = opener(TEXT.encode() * 100)
    garbled = content[:25] + b"\xff" * 20 + content[45:]
    for broken in (content[: len(content) // 2], garbled, b"no archive at all"):
        with pytest.raises(UserError, match=f"{name}: cannot be read after line"):
            read(write(tmp_path / name, broken))


def test_a_path_that_names_no_text_is_refused(tmp_path):
    write(tmp_path / "a.txt", TEXT)
    write(tmp_path / "b.tsv", "a\tb\n")
    for spec, problem in {
        "missing.txt": "missing.txt: no such file",
        "*.csv": "no file matches",
        "": "is a folder; name its files",
        "*": "both .tsv files of pairs and text files",
    }.items():
        with pytest.raises(UserError, match=problem):
            open_source(f"{tmp_path}/{spec}")


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    def fingerprint(spec):
        return open_source(str(tmp_path / spec)).fingerprint()

    write(tmp_path / "a.txt", "x\ty\n")
    first = fingerprint("a.txt")
    assert len(first) == 64 and int(first, 16)
    write(tmp_path / "b.txt", "x\ty\n")
    write(tmp_path / "b.tsv", "x\ty\n")
    assert fingerprint("b.txt") == first == fingerprint("a.*")
    assert fingerprint("b.tsv") != first != fingerprint("*.txt")
    write(tmp_path / "a.txt", "x\tz\n")
    assert fingerprint("a.txt") != first


@pytest.mark.parametrize("spec", ["tfds:", "tfds:name", "hub:name:split", "hub:name::text", "hub:"])
def test_a_spec_with_missing_parts_is_refused(spec):
    with pytest.raises(UserError, match=r"missing parts; write (tfds|hub):NAME:SPLIT:FIELD"):
        open_source(spec)


@pytest.mark.parametrize(
    ("spec", "package", "command"),
    [
        ("tfds:n:train:text", "tensorflow_datasets", "pip install tensorflow-datasets"),
        ("hub:n:train:text", "datasets", "pip install datasets"),
    ],
)
def test_a_missing_package_is_named(spec, package, command, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs the package {package}: {command}"):
        open_source(spec)


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A TFDS folder with the data set `tiny`: 10 sentences, one blank, in ArrayRecord."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            name = "tiny"
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = folder

            def _info(self):
                features = {"text": tfds.features.Text(), "n": tfds.features.Scalar(np.int64)}
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, download_manager):
                texts = [f" Sentence {i} é. ".encode() if i != 3 else b" " for i in range(10)]
                return {
                    "train": self._generate_examples(texts),
                    "latin": self._generate_examples([b"caf\xe9"]),
                }

            def _generate_examples(self, texts):
                for i, text in enumerate(texts):
                    yield i, {"text": text, "n": i}

    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def tfds_data(tfds_folder, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    folder = shutil.copytree(tfds_folder, tmp_path / "tfds")
    # TFDS reads TFDS_DATA_DIR into this constant when it is imported.
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(folder))
    return folder


def test_tfds_text_is_decoded(tfds_data):
    source = open_source("tfds:tiny:train:text")
    assert list(source.read()) == [f"Sentence {i} é." for i in range(10) if i != 3]
    assert (source.blank, source.views) == (1, 1)
    assert read("tfds:tiny:1.0.0:train[:2]:text") == ["Sentence 0 é.", "Sentence 1 é."]
    assert source.fingerprint() == open_source("tfds:tiny:1.0.0:train:text").fingerprint()
    assert source.fingerprint() != open_source("tfds:tiny:train[:9]:text").fingerprint()


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("tfds:tiny:test:text", "Unknown split 'test'"),
        ("tfds:tiny:train:words", "there is no field words; it has n, text"),
        ("tfds:tiny:train:n", "n is not text"),
        ("tfds:tiny:latin:text", "record 0 is not UTF-8"),
        ("tfds:no_such_data:train:text", "no_such_data not found.*TFDS_DATA_DIR"),
    ],
)
def test_a_tfds_data_set_that_cannot_be_read_is_refused(tfds_data, spec, problem):
    with pytest.raises(UserError, match=problem) as refused:
        read(spec)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("stored", ["parquet", "tfrecord"])
def test_other_formats_of_tfds_are_answered_with_how_to_convert(tfds_data, stored):
    info = tfds_data / "tiny/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', f'"{stored}"'))
    with pytest.raises(UserError, match=f"stored as {stored}; convert it: .*tiny/1.0.0"):
        open_source("tfds:tiny:train:text")


def test_a_tfds_data_set_that_is_not_prepared_is_answered_with_how_to(tfds_data):
    path = tfds_data / "tiny/1.0.0/dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"splits": []}))
    with pytest.raises(UserError, match="not prepared in .*tfds build tiny --file_format"):
        open_source("tfds:tiny:train:text")


class HubData(dict):
    column_names = ["text", "label"]
    _fingerprint = "0123abc"

    def __len__(self):
        return len(self["text"])

    def select(self, rows):
        return {name: [column[row] for row in rows] for name, column in self.items()}


def check_shards(source, counts):
    """The shards hold so many sentences each, and together what the source holds."""
    shards = [list(source.read_shard(number)) for number in range(source.num_shards)]
    assert [len(shard) for shard in shards] == counts
    assert sum(shards, []) == list(source.read())


def test_records_of_tfds_are_read_in_shards(tfds_data, monkeypatch):
    monkeypatch.setattr(sources, "_SHARD_RECORDS", 3)
    check_shards(open_source("tfds:tiny:train:text"), [2, 2, 2, 3])  # record 3 is blank
    check_shards(open_source("tfds:tiny:train[:50%]:text"), [2, 2])


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the package `datasets`; collects what it was asked for."""
    asked = []

    def load_dataset(*names, split):
        if names == ("gone",):
            raise FileNotFoundError("Couldn't find it\nanywhere")
        asked.append((names, split))
        return HubData(text=["One.", "", " Two. "], label=[1, 2, 3])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_hub_data_is_read_by_name_config_split_and_field(hub):
    source = open_source("hub:someone/corpus:en:train[:10%]:text")
    assert list(source.read()) == ["One.", "Two."] and source.blank == 1
    open_source("hub:corpus:test:text")
    assert hub == [(("someone/corpus", "en"), "train[:10%]"), (("corpus",), "test")]


def test_rows_of_the_hub_are_read_in_shards(hub, monkeypatch):
    monkeypatch.setattr(sources, "_SHARD_RECORDS", 2)
    check_shards(open_source("hub:corpus:test:text"), [1, 1])


def test_hub_data_that_cannot_be_read_is_refused(hub):
    for spec, problem in {
        "hub:gone:train:text": "hub:gone:train:text: Couldn't find it$",
        "hub:corpus:train:body": "there is no field body; it has label, text",
        "hub:corpus:train:label": "record 0: 1 is not text",
    }.items():
        with pytest.raises(UserError, match=problem):
            read(spec)


def test_stdlib_is_the_documentation_of_python(monkeypatch):
    monkeypatch.setattr(sources.python_docs, "sentences", lambda: ("One sentence.",))
    monkeypatch.setattr(sources.python_docs, "identity", lambda: "a")
    source = open_source("stdlib")
    assert (list(source.read()), source.views) == (["One sentence."], 1)
    monkeypatch.setattr(sources.python_docs, "identity", lambda: "b")
    assert open_source("stdlib").fingerprint() != source.fingerprint()
