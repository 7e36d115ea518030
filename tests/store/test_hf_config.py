"""`config.json` of Hugging Face folders: what is read from it, and what is refused."""

import json

import pytest
from hf_tensors import ARCHITECTURE, CONFIG

from jtcse_jax.errors import UserError
from jtcse_jax.families.registry import FAMILIES
from jtcse_jax.store import hf_config


def test_read_architecture(tmp_path):
    def read(**config):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | config))
        return hf_config.read_architecture(tmp_path)

    assert read() == ARCHITECTURE
    roberta = read(model_type="roberta", type_vocab_size=1, layer_norm_eps=1e-5)
    assert (roberta.family, roberta.pad_token_id, roberta.type_vocab_size) == ("roberta", 1, 1)
    assert roberta.layer_norm_eps == 1e-5
    assert read(model_type="xlm-roberta", pad_token_id=1).family == "roberta"
    assert read(model_type="camembert").family == "roberta"
    assert read(pad_token_id=7).pad_token_id == 7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "t5"),
        ("hidden_act", "silu"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("num_hidden_layers", None),
        ("hidden_size", "8"),
        ("vocab_size", 0),
        ("type_vocab_size", 0),
        ("layer_norm_eps", None),
        ("num_attention_heads", 3),
    ],
)
def test_architectures_that_are_refused(tmp_path, field, value):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {field: value}))
    with pytest.raises(UserError, match=f"config.json: {field} = {value!r}"):
        hf_config.read_architecture(tmp_path)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"model_type": "\\ud800'])
def test_unreadable_config(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json"):
        hf_config.read_architecture(tmp_path)


def test_a_refused_model_is_told_what_is_supported(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"model_type": "t5"}))
    with pytest.raises(UserError) as refusal:
        hf_config.read_architecture(tmp_path)
    for model_type in ("xlm-roberta", "camembert", *FAMILIES):
        assert model_type in str(refusal.value)
    assert "sentence-transformers:NAME" in str(refusal.value)
