"""A vocabulary trained on the text: what it keeps of languages that are not English."""

import pytest

from jtcse_jax.data.sources import open_source
from jtcse_jax.data.vocabulary import train_tokenizer
from jtcse_jax.errors import UserError

SENTENCES = {
    "hindi": "मैं हिन्दी में लिखता हूँ",
    "vietnamese": "má mà mả mã mạ ma",
    "korean": "나는 한국어로 글을 쓴다",
    "german": "Die Größe der Häuser",
}
# Written without spaces, as in these scripts; each pair is two clauses with other meanings.
UNSPACED = {
    "thai": ("เด็กผู้หญิงกำลังอ่านหนังสืออยู่ใต้ต้นไม้ใหญ่", "ราคาน้ำมันในตลาดโลกปรับตัวสูงขึ้นอีกครั้ง"),
    "khmer": ("ក្មេងស្រីកំពុងអានសៀវភៅនៅក្រោមដើមឈើ", "តម្លៃសាំងបានកើនឡើងម្តងទៀតនៅសប្តាហ៍នេះ"),
    "lao": ("ເດັກຍິງກຳລັງອ່ານປຶ້ມຢູ່ໃຕ້ຕົ້ນໄມ້ໃຫຍ່", "ລາຄານ້ຳມັນໃນຕະຫຼາດໂລກເພີ່ມຂຶ້ນອີກຄັ້ງ"),
    "burmese": ("မိန်းကလေးသည်သစ်ပင်ကြီးအောက်တွင်စာအုပ်ဖတ်နေသည်", "ကမ္ဘာ့ဈေးကွက်တွင်ရေနံဈေးထပ်မံမြင့်တက်လာသည်"),
    "tibetan": (
        "བུ་མོ་ཆུང་ཆུང་ཞིག་ཤིང་སྡོང་གི་འོག་ཏུ་དཔེ་ཆ་ཀློག་གི་འདུག",
        "འཛམ་གླིང་ཁྲོམ་རར་སྣུམ་གྱི་གོང་ཚད་ཡང་བསྐྱར་འཕར་སོང་",
    ),
    "japanese": (
        "おんなのこがおおきなきのしたでほんをよんでいます",
        "せかいのせきゆかかくがまたあがりました",
    ),
    "chinese": ("女孩正在大树下面安静地读一本旧书", "国际市场上的石油价格又一次上涨了"),
}


def write(path, *lines, times=20):
    path.write_text("\n".join(lines * times), encoding="utf-8")
    return open_source(str(path))


@pytest.mark.parametrize("language", SENTENCES)
def test_accents_and_vowel_signs_are_part_of_the_word(tmp_path, language):
    text = SENTENCES[language]
    tokenizer = train_tokenizer(write(tmp_path / "text.txt", text), 300)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.lower()


@pytest.mark.parametrize("script", UNSPACED)
def test_sentence_without_spaces_keeps_its_characters(tmp_path, script):
    pair = UNSPACED[script]
    tokenizer = train_tokenizer(write(tmp_path / "text.txt", *pair), 600)
    # Far more than 100 characters without a space, in an order that the text did not have.
    first, second = pair[0] * 5 + pair[1], pair[1] * 5 + pair[0]
    for sentence in (first, second):
        ids = tokenizer(sentence)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        tokens = tokenizer.convert_ids_to_tokens(ids[1:-1])
        assert "".join(token.removeprefix("##") for token in tokens) == sentence
    assert tokenizer(first)["input_ids"] != tokenizer(second)["input_ids"]


def test_unknown_character_costs_only_itself(tmp_path):
    tokenizer = train_tokenizer(write(tmp_path / "text.txt", *UNSPACED["thai"]), 600)
    first, second = UNSPACED["thai"]
    tokens = tokenizer.tokenize(f"{first}Ω{second}ж]^-\\")
    assert tokens.count("[UNK]") == 6
    known = [token.removeprefix("##") for token in tokens if token != "[UNK]"]
    assert "".join(known) == first + second


def test_characters_with_a_meaning_in_patterns_are_plain_characters(tmp_path):
    text = r"a^b]c[d-e\f&&g{1}|h.$ ~#x"
    tokenizer = train_tokenizer(write(tmp_path / "text.txt", text), 300)
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
    assert tokenizer.tokenize("é") == ["[UNK]"]


def test_case_is_kept_where_it_is_asked_for(tmp_path):
    source = write(tmp_path / "text.txt", "Der Morgen. Am morgen.")
    cased, lower = (train_tokenizer(source, 100, lowercase=kind) for kind in (False, True))
    assert cased.tokenize("Morgen") != cased.tokenize("morgen")
    assert lower.tokenize("Morgen") == lower.tokenize("morgen")


def test_a_large_vocabulary_has_room_for_thousands_of_characters(tmp_path):
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 2000)]
    text = "\n".join("".join(characters[i : i + 20]) for i in range(0, 2000, 20))
    path = tmp_path / "text.txt"
    path.write_text(f"{text}\n{text}", encoding="utf-8")
    tokenizer = train_tokenizer(open_source(str(path)), 8000)
    assert tokenizer.unk_token_id not in tokenizer("".join(characters))["input_ids"]
    with pytest.raises(UserError, match="alphabet of .* alone need"):
        train_tokenizer(open_source(str(path)), 1500)


def test_the_same_text_gives_the_same_vocabulary(tmp_path):
    source = write(tmp_path / "text.txt", SENTENCES["hindi"])
    assert train_tokenizer(source, 200).get_vocab() == train_tokenizer(source, 200).get_vocab()
