"""Towers of each family train with JTCSE, and their export is what transformers computes."""

import dataclasses

import jax
import numpy as np
import pytest
from exports import roberta_model
from family_cases import CASES
from runs import largest_difference, saved_params, tiny_config

from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.families.registry import FAMILIES
from jtcse_jax.store import exported, saved_model
from jtcse_jax.store.hf_tokenizer import save_tokenizer
from jtcse_jax.training import trainer


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
def test_towers_train_and_are_exported(tmp_path, family):
    torch = pytest.importorskip("torch", reason="opens the export with transformers")
    from transformers import AutoModel, AutoTokenizer

    config = tiny_config(tmp_path, max_steps=2, eval_every=2)
    scratch = dataclasses.replace(config.model.scratch, family=family, embedding_size=8)
    model = dataclasses.replace(config.model, scratch=scratch)
    if "pad_token_id" in FAMILIES[family].fixed:  # that of a tokenizer of single bytes
        with pytest.raises(UserError, match="model.tokenizer"):
            trainer.train(dataclasses.replace(config, model=model))
        tokenizer = roberta_model().tokenizer
        save_tokenizer(tokenizer, tmp_path / "tokenizer")
        scratch = dataclasses.replace(scratch, vocab_size=len(tokenizer))
        model = dataclasses.replace(model, scratch=scratch, tokenizer=str(tmp_path / "tokenizer"))
    config = dataclasses.replace(config, model=model, workdir=str(tmp_path / "trained"))
    trainer.train(config, devices=jax.devices()[:2])
    workdir = tmp_path / "trained"
    assert largest_difference(saved_params(workdir, 0), saved_params(workdir, 2)) > 1e-4

    exported.export(saved_model.load(workdir), tmp_path / "export")
    texts = ["The cat sees someone.", "A dog, in the garden, at night, likes the old river."]
    total = 0
    for tower in ("tower_0", "tower_1"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export" / tower)
        encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        # A model without token types must not be given any; one with them takes 0 by default.
        assert "token_type_ids" not in encoded or scratch.has("type_vocab_size")
        with torch.no_grad():
            model = AutoModel.from_pretrained(tmp_path / "export" / tower).eval()
            total = total + model(**encoded).last_hidden_state[:, 0].numpy()
    for folder in (workdir, tmp_path / "export"):
        np.testing.assert_allclose(SentenceEncoder.load(folder).encode(texts), total, atol=1e-5)
