"""Splitting and cleaning, sentence by sentence and against the rules applied one by one."""

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtcse_jax.data.cleaning import (
    FEW_LETTERS,
    KEPT,
    LONG,
    SHORT,
    Rules,
    duplicate_key,
    examine,
    split,
)
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
        ("Am 3. Mai kam er. Der 1. Mai war frei.", ["Am 3. Mai kam er.", "Der 1. Mai war frei."]),
        (
            "The U.S. Army has 3.14 of it, e.g. this. Next",
            ["The U.S. Army has 3.14 of it, e.g. this.", "Next"],
        ),
        ("Il a dit « Viens ! » et partit. Bien.", ["Il a dit « Viens ! » et partit.", "Bien."]),
        ("彼は行きますか?はい.そうです…ね。", ["彼は行きますか?", "はい.", "そうです…ね。"]),
        ("Yahoo!の本と３．１４を見た。", ["Yahoo!の本と３．１４を見た。"]),
        ("no end", ["no end"]),
        ("", []),
    ],
)
def test_sentences_end_where_the_rules_say(text, sentences):
    assert list(split(text)) == sentences


# Three sentences of each script, with its own marks: a statement, a question, a statement.
SCRIPTS = {
    "hindi": ["भारत एक विशाल देश है।", "क्या आप जानते हैं?", "यहाँ की नदियाँ लंबी हैं।"],
    "sanskrit": ["धर्मक्षेत्रे कुरुक्षेत्रे।", "मामकाः पाण्डवाश्चैव॥", "किमकुर्वत सञ्जय॥"],
    "bengali": ["আমি ভাত খাই।", "তুমি কী খাও?", "সে বই পড়ে।"],
    "arabic": ["نعم، أحبها كثيرا.", "هل تحب القهوة؟", "ذهب إلى المدرسة."],
    "urdu": ["یہ ایک کتاب ہے۔", "کیا آپ نے پڑھی؟", "وہ گھر گیا۔"],
    "armenian": ["Ես գնում եմ տուն։", "Դու ո՞ւր ես գնում։", "Լավ է։"],
    "amharic": ["እኔ ወደ ቤት እሄዳለሁ።", "አንተ የት ትሄዳለህ፧", "ጥሩ ነው።"],
    "burmese": ["ကျွန်တော်ကျောင်းသွားသည်။", "သူဘယ်သွားမလဲ။", "မိုးရွာသည်။"],
    "khmer": ["ខ្ញុំទៅផ្សារ។", "តើអ្នកទៅណា?", "គាត់ញ៉ាំបាយ។"],
    "tibetan": ["བོད་ཡིག་ནི་སྙན་ངག་ཡིན།", "ཁྱེད་རང་གང་དུ་འགྲོ།", "ང་བོད་པ་ཡིན༎"],
    "chinese": ["中国的首都是北京。", "你去过吗？", "它有很多名胜古迹！"],
    "japanese": ["今日は晴れです。", "東京に行きますか？", "「はい。」"],
    "korean": ["나는 학교에 갔다.", "너는 어디 가니?", "비가 온다."],
    "russian": ["Он родился в Москве.", "Это А. С. Пушкин?", "Да, он."],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_its_marks(script):
    sentences = SCRIPTS[script]
    assert list(split(" ".join(sentences))) == sentences
    quoted = [f"{sentence}”" for sentence in sentences]
    assert list(split(" ".join(quoted))) == quoted


@pytest.mark.parametrize(
    "script",
    [
        "hindi",
        "sanskrit",
        "urdu",
        "armenian",
        "amharic",
        "burmese",
        "tibetan",
        "chinese",
        "japanese",
    ],
)
def test_marks_without_another_use_need_no_space(script):
    sentences = SCRIPTS[script]
    ends = [sentence.replace("?", "।") for sentence in sentences]
    assert list(split("".join(ends))) == ends


def test_long_runs_take_time_in_proportion_to_their_length():
    """A quadratic rule would take hours for any of these lines; the limit is for a busy machine."""
    code = """if True:
        from jtcse_jax.data.cleaning import Rules, examine
        for run in (".", "!?", "…", "。", "।", '."', ' "', ". ", "a.", "A. ", "1. ", "e.g. ", " »"):
            line = "Chapter one " + run * (2**18 // len(run)) + "5 ends here"
            found = "".join(sentence for _, sentence in examine(line, Rules()))
            assert found.replace(" ", "") == line.replace(" ", "")
        """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_document_of_one_run_of_dots_is_one_long_sentence():
    line = "Chapter one " + "." * 40_000 + "5 ends here"
    assert list(examine(line, Rules())) == [(LONG, line)]


@settings(max_examples=300, deadline=None)
@given(st.text("aB3.!?… ' \")。」éJ»।．漢", max_size=40))
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
        wide = sum(unicodedata.east_asian_width(character) in "WF" for character in sentence)
        if len(sentence) + wide < shortest:
            assert outcome == SHORT
        elif len(sentence) + wide > shortest + more:
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


def test_short_sentences_are_counted_fairly_in_wide_scripts():
    document = "中国的首都是北京。你去过吗？是的。나는 집에 갔다. Ja, ja. Ich war da."
    kept = [text for outcome, text in examine(document, Rules()) if outcome == KEPT]
    assert kept == ["中国的首都是北京。", "你去过吗？", "나는 집에 갔다.", "Ich war da."]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("Hello, World!", "HELLO , world!", True),
        ("Ｈｅｌｌｏ， world！", "hello, world!", True),
        ("e\u0301te\u0301 ﬁn", "été fin", True),
        ("STRASSE", "straße", True),
        ("ｶﾀｶﾅです｡", "カタカナです。", True),
        ("Is it?", "Is it.", False),
        ("resume", "résumé", False),
        ("12 cats", "13 cats", False),
    ],
)
def test_duplicates_are_what_a_reader_would_call_so(one, other, equal):
    assert (duplicate_key(one) == duplicate_key(other)) == equal


@pytest.mark.parametrize(
    "fields", [{"min_chars": 0}, {"min_chars": 9, "max_chars": 8}, {"min_letters": 1.5}]
)
def test_rules_that_cannot_work_are_refused(fields):
    with pytest.raises(UserError, match=f"{next(iter(fields))} = "):
        Rules(**fields)
