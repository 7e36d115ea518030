"""The output of `augment`: whole or not there, resumed without losing or repeating a line."""

import os
import resource

import pytest

from jtcse_jax.data.pair_file import PairFile
from jtcse_jax.data.sources import open_source
from jtcse_jax.errors import UserError

SENTENCES = ["One.", "Zwei Wörter.", "three little words", "4", "five\tfive", "six", "seven 七"]
SETTINGS = {"--num-beams": 4, "--forward": "there"}


def second(sentence: str) -> str:
    return f"again {sentence}" if len(sentence) > 4 else sentence


def write(output, sentences=SENTENCES, window=3, settings=SETTINGS, windows=100):
    """Makes the file, or stops after some windows as a kill would; returns the pairs kept."""
    with PairFile(output, settings) as pairs:
        left = iter(sentences)
        kept = pairs.resume(left, window)
        for _ in range(windows):
            block = [sentence for _, sentence in zip(range(window), left, strict=False)]
            if not block:
                pairs.finish()
                break
            pairs.append([(sentence, second(sentence)) for sentence in block])
    return kept


@pytest.fixture
def output(tmp_path):
    return tmp_path / "pairs.tsv"


@pytest.fixture
def partial(tmp_path):
    return tmp_path / "pairs.tsv.partial"


def test_the_file_is_a_source_of_pairs(output, tmp_path):
    write(output, ["a b", "tab\tand\nbreak\r", "c"])
    assert output.read_bytes() == b"a b\ta b\ntab and break\tagain tab and break\nc\tc\n"
    source = open_source(str(output))
    expected = ["a b", "a b", "tab and break", "again tab and break", "c", "c"]
    assert source.views == 2 and list(source.read()) == expected
    assert os.listdir(tmp_path) == ["pairs.tsv"]


def test_until_it_is_whole_it_has_another_name(output, partial):
    write(output, windows=2)
    assert partial.exists() and not output.exists()


def test_every_place_of_a_kill_gives_the_same_file(output, partial, tmp_path):
    write(tmp_path / "whole.tsv")
    whole = (tmp_path / "whole.tsv").read_bytes()
    write(output, windows=0)
    for cut in range(1, len(whole) + 1):
        write(output, windows=1)
        partial.write_bytes(whole[:cut])
        kept = write(output)
        assert kept == whole[:cut].count(b"\n") // 3 * 3
        assert output.read_bytes() == whole
        output.unlink()


def test_another_window_may_go_on(output, partial, tmp_path):
    write(tmp_path / "whole.tsv")
    write(output, windows=2)
    assert write(output, window=4) == 4
    assert output.read_bytes() == (tmp_path / "whole.tsv").read_bytes()


def test_pairs_of_earlier_starts_are_counted(output):
    write(output, windows=1)
    with PairFile(output, SETTINGS) as pairs:
        pairs.resume(iter(SENTENCES), 3)
        assert (pairs.pairs, pairs.unchanged) == (3, 1)
        pairs.append([("4", "4"), ("five\tfive", "five five")])
        assert (pairs.pairs, pairs.unchanged) == (5, 3)


def test_an_existing_file_is_left_alone(output):
    output.write_text("mine")
    with pytest.raises(UserError, match="pairs.tsv exists already"):
        PairFile(output, SETTINGS)
    assert output.read_text() == "mine"


def test_a_file_that_appears_meanwhile_is_left_alone(output, partial):
    with PairFile(output, SETTINGS) as pairs:
        pairs.resume(iter(SENTENCES), 3)
        pairs.append([("a", "b")])
        output.write_text("mine")
        with pytest.raises(UserError, match="exists already"):
            pairs.finish()
    assert output.read_text() == "mine" and partial.read_text() == "a\tb\n"


@pytest.mark.parametrize(
    "settings", [{"--num-beams": 1, "--forward": "there"}, {"--num-beams": 1}, {"--seed": 4}]
)
def test_other_settings_are_refused(output, partial, settings):
    write(output, windows=1)
    before = partial.read_bytes()
    with pytest.raises(UserError, match=r"was begun with --(num-beams = 4|forward = 'there') and"):
        write(output, settings=settings)
    assert partial.read_bytes() == before
    assert write(output) == 3


def test_settings_that_made_nothing_yet_bind_nobody(output, partial, tmp_path):
    with PairFile(output, {"--num-beams": 9}):
        pass
    assert os.listdir(tmp_path) == []
    # A kill leaves them both.
    partial.write_bytes(b"")
    (tmp_path / "pairs.tsv.partial.json").write_text('{"--num-be')
    assert write(output) == 0 and output.exists()


@pytest.mark.parametrize("sidecar", [None, "", '{"--num-be', "3"])
def test_a_partial_file_of_unknown_settings_is_refused(output, tmp_path, sidecar):
    write(output, windows=1)
    path = tmp_path / "pairs.tsv.partial.json"
    path.unlink() if sidecar is None else path.write_text(sidecar)
    with pytest.raises(UserError, match="partial.json, which has its settings"):
        write(output)


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        (2, ["One.", "Two.", *SENTENCES[2:]]),
        (3, SENTENCES[:2]),
        (1, SENTENCES[1:]),
    ],
)
def test_another_input_is_refused(output, partial, line, sentences):
    write(output, windows=2)
    before = partial.read_bytes()
    with pytest.raises(UserError, match=f"pairs.tsv.partial:{line}: not the pair of"):
        write(output, sentences)
    assert partial.read_bytes() == before


@pytest.mark.parametrize(
    "damaged", [b"One.\n", b"One.\t \n", b"One.\ta\tb\n", b"\xff\xfe\n", b"\n"]
)
def test_a_damaged_line_is_refused(output, partial, damaged):
    write(output, windows=1)
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join([damaged, *lines[1:]]))
    with pytest.raises(UserError, match="pairs.tsv.partial:1: not the pair"):
        write(output)


def test_two_processes_do_not_write_one_file(output):
    with PairFile(output, SETTINGS) as pairs:
        pairs.append([("a", "b")])
        with pytest.raises(UserError, match="is being written by another process"):
            PairFile(output, SETTINGS)
    PairFile(output, SETTINGS).__exit__(None, None, None)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"absent/pairs.tsv: No such file or directory; name"):
        PairFile(tmp_path / "absent" / "pairs.tsv", SETTINGS)


def test_a_full_disk_keeps_what_is_done(output, partial, tmp_path):
    """The limit on a file's size acts as a full disk does: a short write, then an error."""
    write(tmp_path / "whole.tsv")
    whole = (tmp_path / "whole.tsv").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with PairFile(output, SETTINGS) as pairs:
            pairs.resume(iter(SENTENCES), 3)
            pairs.append([(sentence, second(sentence)) for sentence in SENTENCES[:3]])
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) - 30, hard))
            with pytest.raises(UserError, match=r"too large; .*pairs.tsv.partial keeps"):
                pairs.append([(sentence, second(sentence)) for sentence in SENTENCES[3:6]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert partial.stat().st_size == len(whole) - 30, "the error came too early to leave a tail"
    assert write(output) == 3
    assert output.read_bytes() == whole
