"""Tokenizers in Hugging Face folders."""

import dataclasses
import json
import subprocess
import sys

import pytest
import transformers
from hf_tensors import ARCHITECTURE, CONFIG, VOCAB, bert_tensors, save
from tiny_models import ENTRIES, SHAPE, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jtcse_jax.data.sources import open_source
from jtcse_jax.data.vocabulary import train_tokenizer
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank
from jtcse_jax.store import hf_tokenizer, hf_weights
from jtcse_jax.store.exported import export
from jtcse_jax.store.saved_model import SavedModel


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


@pytest.mark.parametrize("num_towers", [1, 2])
def test_trained_tokenizer_has_the_same_ids_in_an_exported_folder(tmp_path, num_towers):
    library = pytest.importorskip("sentence_transformers", reason="opens the exported folder")
    clauses = "เด็กผู้หญิงกำลังอ่านหนังสืออยู่ใต้ต้นไม้ใหญ่", "ราคาน้ำมันในตลาดโลกปรับตัวสูงขึ้นอีกครั้ง"
    (tmp_path / "text.txt").write_text("\n".join(clauses * 9), encoding="utf-8")
    tokenizer = train_tokenizer(open_source(str(tmp_path / "text.txt")), 300)
    sentences = [clauses[0] * 3 + clauses[1], f"a Ω{clauses[1]}"]
    ids = tokenizer(sentences)["input_ids"]

    bank = Bank(
        dataclasses.replace(SHAPE, vocab_size=len(tokenizer), max_positions=256), num_towers
    )
    export(SavedModel(bank, bank.init(0), tokenizer, 256, "tiny"), tmp_path / "model")
    towers = [tmp_path / "model"]
    if num_towers > 1:
        towers = [tmp_path / "model" / f"tower_{number}" for number in range(num_towers)]
    for tower in towers:
        assert AutoTokenizer.from_pretrained(tower)(sentences)["input_ids"] == ids
        # The only name of the class that both transformers 4 and 5 know.
        settings = json.loads((tower / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    opened = library.SentenceTransformer(
        str(tmp_path / "model"), device="cpu", trust_remote_code=num_towers > 1
    )
    assert opened.tokenizer(sentences)["input_ids"] == ids


def test_folders_without_a_tokenizer(tmp_path):
    # From config.json alone transformers would make one of five special tokens, silently.
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UserError, match="no tokenizer"):
        hf_tokenizer.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load its tokenizer"):
        hf_tokenizer.load_tokenizer(tmp_path)


@pytest.mark.parametrize("part", [".", "tokenizer", "tower_0"])
def test_a_tokenizer_is_found_in_a_model_a_run_and_an_export_of_towers(tmp_path, part):
    tokenizer = tiny_model(1).tokenizer
    hf_tokenizer.save_tokenizer(tokenizer, tmp_path / part)
    assert hf_tokenizer.find_tokenizer(str(tmp_path)).get_vocab() == tokenizer.get_vocab()


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


@pytest.mark.parametrize("named", [*hf_tokenizer.OWN_CLASSES, "PreTrainedTokenizerFast"])
def test_the_tokenizer_is_that_of_transformers_whatever_model_it_lies_beside(tmp_path, named):
    entries = {entry: number for number, entry in enumerate(ENTRIES)}
    pieces = [(piece, -1.0) for piece in ("<s>", "<pad>", "</s>", "<unk>", "▁", "▁a", "b", "c")]
    vocabulary = {
        "Roberta": {"vocab": entries, "merges": []},
        "XLMRoberta": {"vocab": pieces},
        "Camembert": {"vocab": pieces},
        "PreTrained": {"tokenizer_object": small_tokenizer().backend_tokenizer},
    }.get(named.partition("Tokenizer")[0], {"vocab": entries})
    getattr(transformers, named)(**vocabulary).save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    kinds = ("", "bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "electra")
    for kind in (*kinds, "modernbert"):
        if kind:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        for suffix in ("", "Fast"):
            name = named if named.endswith("Fast") else named + suffix
            rewritten = json.loads(settings.read_text()) | {"tokenizer_class": name}
            settings.write_text(json.dumps(rewritten))
            ours = hf_tokenizer.load_tokenizer(tmp_path)
            theirs = AutoTokenizer.from_pretrained(tmp_path)
            assert type(ours) is type(theirs)
            assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()


def test_no_other_library_is_imported_for_a_tokenizer_of_our_families(tmp_path):
    tiny_model(1).tokenizer.save_pretrained(tmp_path)
    code = (
        "import sys\nfrom jtcse_jax.store.hf_tokenizer import load_tokenizer\n"
        f"assert load_tokenizer({str(tmp_path)!r}).is_fast\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
