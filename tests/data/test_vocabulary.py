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


def write(path, text, times=20):
    path.write_text("\n".join([text] * times), encoding="utf-8")
    return open_source(str(path))


@pytest.mark.parametrize("language", SENTENCES)
def test_accents_and_vowel_signs_are_part_of_the_word(tmp_path, language):
    text = SENTENCES[language]
    tokenizer = train_tokenizer(write(tmp_path / "text.txt", text), 300)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.lower()


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
