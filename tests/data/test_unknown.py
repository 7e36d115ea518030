"""Characters that a tokenizer does not know, counted against the tokens' own positions."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizer

from jtcse_jax.data.unknown import UnknownCounter, warn_of_unknown

SENTENCES = ["cat xy cat", "", "xy", "cat", "c xyz"]


def backends():
    words = {"[UNK]": 0, "cat": 1}
    pieces = [("[UNK]", 0.0), ("cat", -1.0)]
    return {
        "wordpiece": Tokenizer(models.WordPiece(words, unk_token="[UNK]")),
        "words": Tokenizer(models.WordLevel(words, unk_token="[UNK]")),
        "unigram": Tokenizer(models.Unigram(pieces, unk_id=0)),
    }


@pytest.mark.parametrize("kind", backends())
def test_all_characters_but_those_of_known_words_are_counted(kind):
    backend = backends()[kind]
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ids = [encoding.ids for encoding in backend.encode_batch(SENTENCES)]
    assert UnknownCounter(backend).count(SENTENCES, ids).tolist() == [2, 0, 2, 0, 4]


def test_tokenizer_without_an_unknown_token_knows_all():
    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    assert UnknownCounter(backend).count(["ab", "b"], [[0, 1], [1]]).tolist() == [0, 0]


def test_one_token_may_stand_for_a_whole_clause(caplog):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "ก", "##ก"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)})
    clause = "ก" * 150  # more than WordPiece's 100 characters
    sentences = [f"{'a ' * 60}{clause}"]
    ids = tokenizer(sentences)["input_ids"]
    assert ids[0].count(1) == 1
    counts = UnknownCounter(tokenizer.backend_tokenizer).count(sentences, ids)
    assert counts.tolist() == [150]
    warn_of_unknown("text.txt", 150, len(sentences[0]))
    (record,) = caplog.records
    assert "text.txt: 55.56 %" in record.message


def test_up_to_1_percent_is_not_warned_of(caplog):
    warn_of_unknown("text.txt", 1, 100)
    warn_of_unknown("text.txt", 0, 0)
    warn_of_unknown("an emoji in a query", 1, 20)
    assert not caplog.records
    warn_of_unknown("a word of another script", 4, 6)
    warn_of_unknown("text.txt", 6, 500)
    assert len(caplog.records) == 2
