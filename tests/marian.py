"""Tiny Marian models, made and used by transformers alone."""

import functools
import io
import json
import shutil
from pathlib import Path

import pytest
from runs import write_text


def write_marian(folder: Path, seed: int, *, end: float = 8.0) -> Path:
    """A random Marian model with a sentencepiece tokenizer trained on the tests' sentences.

    `end` is what makes a sentence's end likelier: 8 ends some, 1e4 all at once.
    """
    torch = pytest.importorskip("torch", reason="Marian models run on torch")
    sentencepiece = pytest.importorskip("sentencepiece", reason="Marian's tokenizer")
    import transformers

    torch.set_num_threads(1)  # threads that wait for each other cost more than these models
    folder.mkdir()
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(write_text(folder / "text.txt").read_text().splitlines()),
        model_writer=trained,
        vocab_size=120,
        model_type="bpe",
        minloglevel=2,
    )
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(trained.getvalue())
    spm = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    pieces = [spm.id_to_piece(i) for i in range(3, len(spm))]
    vocab = ["</s>", "<unk>", *pieces, ">>x<<", ">>y<<", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocab)}))
    # The largest initial weights let a random model write different words of different sentences.
    config = transformers.MarianConfig(
        vocab_size=len(vocab),
        max_position_embeddings=64,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        init_std=1.0,
        pad_token_id=len(vocab) - 1,
        decoder_start_token_id=len(vocab) - 1,
        eos_token_id=0,
        forced_eos_token_id=0,
    )
    torch.manual_seed(seed)
    model = transformers.MarianMTModel(config)
    model.generation_config.bad_words_ids = [[len(vocab) - 1]]
    model.final_logits_bias[0, 0] = end
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"source_lang": "en", "target_lang": "fr"}')
    return folder


@functools.cache
def opened(folder: Path):
    """The tokenizer and the model as transformers opens them."""
    import transformers

    return (
        transformers.MarianTokenizer.from_pretrained(folder),
        transformers.MarianMTModel.from_pretrained(folder),
    )


def reference(folder: Path, text: str, max_len: int = 12) -> str:
    """The translation by transformers' own calls, one text at a time, without our code."""
    tokenizer, model = opened(folder)
    tokens = tokenizer(text, truncation=True, max_length=max_len, return_tensors="pt")
    written = model.generate(**tokens, num_beams=2, max_new_tokens=max_len)
    return tokenizer.decode(written[0], skip_special_tokens=True)


def copy_without(folder: Path, copy: Path, left_out: str) -> Path:
    """A copy of a model without the tensors of some name."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if left_out not in name}
    assert len(kept) < len(tensors)
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    return copy
