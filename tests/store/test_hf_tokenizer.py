"""Tokenizers in Hugging Face folders."""

import json

import pytest
from hf_tensors import ARCHITECTURE, CONFIG, VOCAB, bert_tensors, save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jtcse_jax.errors import UserError
from jtcse_jax.store import hf_tokenizer, hf_weights


def small_tokenizer(size=10):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"word{number}" for number in range(size - len(words))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    special |= {"sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_tokenizer_is_written_and_loaded(tmp_path):
    params = hf_weights.read_tower(save(tmp_path / "made", bert_tensors()), ARCHITECTURE)
    hf_weights.write_tower(tmp_path / "new", ARCHITECTURE, params, small_tokenizer())
    tokenizer = hf_tokenizer.load_tokenizer(tmp_path / "new")
    assert tokenizer.is_fast
    assert tokenizer("word1 word4 unheard")["input_ids"] == [6, 9, 1]
    assert tokenizer.pad_token_id == 0


def test_folders_without_a_tokenizer(tmp_path):
    # From config.json alone transformers would make one of five special tokens, silently.
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UserError, match="no tokenizer"):
        hf_tokenizer.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load its tokenizer"):
        hf_tokenizer.load_tokenizer(tmp_path)


def test_check_tokenizer():
    hf_tokenizer.check_tokenizer(small_tokenizer(VOCAB), ARCHITECTURE)
    with pytest.raises(UserError, match=f"ids up to {VOCAB},.*vocab_size = {VOCAB}"):
        hf_tokenizer.check_tokenizer(small_tokenizer(VOCAB + 1), ARCHITECTURE)
    tokenizer = small_tokenizer()
    tokenizer.pad_token = "word0"
    with pytest.raises(UserError, match="pads with id 5, the model with pad_token_id = 0"):
        hf_tokenizer.check_tokenizer(tokenizer, ARCHITECTURE)


def test_folder_with_a_sentencepiece_model_only(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    try:
        from sentencepiece import sentencepiece_model_pb2  # noqa: F401
    except Exception as error:
        pytest.skip(f"sentencepiece and protobuf do not fit each other: {error}")
    (tmp_path / "text").write_text("the cat sees the dog\nthe river and the garden\n" * 20)
    folder = tmp_path / "model"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=40,
        hard_vocab_limit=False,
    )
    (folder / "sentencepiece.bpe.vocab").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    own = sentencepiece.SentencePieceProcessor(str(folder / "sentencepiece.bpe.model"))
    tokenizer = hf_tokenizer.load_tokenizer(folder)
    assert tokenizer.tokenize("the cat sees") == own.encode("the cat sees", out_type=str)
