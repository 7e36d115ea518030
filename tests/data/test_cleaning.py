"""Splitting and cleaning, sentence by sentence and against the rules applied one by one."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtcse_jax.data.cleaning import FEW_LETTERS, KEPT, LONG, SHORT, Rules, examine, split
from jtcse_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One here. Two there! Three?", ["One here.", "Two there!", "Three?"]),
        ('She said "Stop." Then he left.', ['She said "Stop."', "Then he left."]),
        ("It cost 3.50 euros. 20 were left.", ["It cost 3.50 euros.", "20 were left."]),
        (
            "Dr. Smith met J. Jones, e.g. Monday. So?",
            ["Dr. Smith met J. Jones, e.g. Monday.", "So?"],
        ),
        ("The firm Yahoo! was sold. It is gone", ["The firm Yahoo! was sold.", "It is gone"]),
        ("Wait... what? (Yes.) Éluard wrote.", ["Wait... what?", "(Yes.)", "Éluard wrote."]),
        ("今日は晴れ。「行こう！」と言った。", ["今日は晴れ。", "「行こう！」", "と言った。"]),
        ("यह एक वाक्य है. दूसरा यहाँ है.", ["यह एक वाक्य है.", "दूसरा यहाँ है."]),
        ("no end", ["no end"]),
        ("", []),
    ],
)
def test_sentences_end_where_the_rules_say(text, sentences):
    assert list(split(text)) == sentences


@settings(max_examples=300, deadline=None)
@given(st.text("aB3.!?… ' \")。」éJ", max_size=40))
def test_no_character_is_lost_by_splitting(text):
    sentences = list(split(text))
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() != "" for sentence in sentences)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30), st.integers(1, 8), st.integers(0, 12), st.floats(0, 1))
def test_what_is_kept_obeys_the_rules_and_is_clean(text, shortest, more, share):
    rules = Rules(min_chars=shortest, max_chars=shortest + more, min_letters=share)
    for outcome, sentence in examine(text, rules):
        categories = [unicodedata.category(character) for character in sentence]
        assert "Cc" not in categories and sentence == " ".join(sentence.split())
        seen = [
            kind for kind, character in zip(categories, sentence, strict=True) if character != " "
        ]
        letters = sum(kind[0] in "LM" for kind in seen)
        if len(sentence) < shortest:
            assert outcome == SHORT
        elif len(sentence) > shortest + more:
            assert outcome == LONG
        else:
            assert outcome == (KEPT if letters >= share * len(seen) else FEW_LETTERS)


def test_what_is_invisible_is_removed_and_joiners_stay():
    document = (
        "\ufeffA  soft\u00adhyphen,\ta\u200bbreak\u0007 and\u2028a\u00a0space. می\u200cخواهم این را"
    )
    found = [sentence for _, sentence in examine(document, Rules())]
    assert found == ["A softhyphen, abreak and a space.", "می\u200cخواهم این را"]


def test_marks_of_a_script_count_as_letters():
    hindi = "हिन्दी में लिखी हुई बात"
    assert list(examine(hindi, Rules(min_letters=1.0))) == [(KEPT, hindi)]
    assert list(examine("12 34 56 x 78", Rules())) == [(FEW_LETTERS, "12 34 56 x 78")]


@pytest.mark.parametrize(
    "fields", [{"min_chars": 0}, {"min_chars": 9, "max_chars": 8}, {"min_letters": 1.5}]
)
def test_rules_that_cannot_work_are_refused(fields):
    with pytest.raises(UserError, match=f"{next(iter(fields))} = "):
        Rules(**fields)
