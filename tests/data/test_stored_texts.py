"""Texts by number: from a file of texts, and from one reading of a source."""

import sys
import tracemalloc

import pytest

from jtcse_jax.data.blocks import sentences_at
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.stored_texts import StoredTexts, TextBlocks, stored_texts
from jtcse_jax.errors import UserError

TEXTS = ["The first.", "", "zwölf Boote", "द्वि ग", "", "tab\tand\nline", "\U0001f600", "x" * 999]


@pytest.mark.parametrize("count", [0, 1, 2, 8])
def test_texts_are_read_back_by_number(tmp_path, count):
    texts = TEXTS[:count]
    stored = stored_texts(tmp_path / "texts", iter(texts))
    assert list(stored) == texts and len(stored) == count
    assert [stored[-1 - number] for number in range(count)] == texts[::-1]
    assert stored[1:6] == texts[1:6] and stored[::-2] == texts[::-2]
    blocks = TextBlocks(stored, 3)
    assert [blocks[number] for number in (2, 0, 1)] == [texts[6:9], texts[:3], texts[3:6]]
    with pytest.raises(IndexError):
        stored[count]
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_texts_are_written_once_and_again_after_an_error(tmp_path):
    def stopped():
        yield "one"
        raise UserError("stopped")

    with pytest.raises(UserError, match="stopped"):
        stored_texts(tmp_path / "texts", stopped())
    assert list(stored_texts(tmp_path / "texts", ["one", "two"])) == ["one", "two"]
    assert list(stored_texts(tmp_path / "texts", stopped())) == ["one", "two"]
    assert list(StoredTexts(tmp_path / "texts")) == ["one", "two"]


def test_sentences_of_given_numbers_come_from_one_reading(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"sentence {n}\n\n" for n in range(20_000)))
    source = open_source(str(tmp_path / "text.txt"))
    wanted = [7, 19_999, 3]
    assert sentences_at(source, wanted) == {n: f"sentence {n}" for n in wanted}
    assert sentences_at(source, []) == {}
    tracemalloc.start()
    sentences_at(source, wanted)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e5 < 20_000 * sys.getsizeof("sentence 10000")
    with pytest.raises(UserError, match="text.txt changed while it was read"):
        sentences_at(source, [20_000])
