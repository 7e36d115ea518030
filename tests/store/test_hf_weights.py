"""Folders written by hand, tensor by tensor, under the names that transformers uses."""

import filecmp
import functools
import json
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hf_tensors import ARCHITECTURE, HIDDEN, INNER, LONGEST, VOCAB, bert_tensors, save
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jtcse_jax.architecture import Architecture
from jtcse_jax.errors import UserError
from jtcse_jax.models.bert import Encoder
from jtcse_jax.store import hf_config, hf_weights


@pytest.fixture
def tensors():
    return bert_tensors()


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), one, other)


def test_every_tensor_comes_to_its_module(tmp_path, tensors):
    params = hf_weights.read_tower(save(tmp_path, tensors), ARCHITECTURE)
    layer, their_layer = params["layers"][1], "encoder.layer.1."
    for ours, theirs in {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "output": "attention.output.dense",
    }.items():
        weight = tensors[f"{their_layer}{theirs}.weight"]
        np.testing.assert_array_equal(layer["attention"][ours]["kernel"], weight.T)
    inner = tensors[f"{their_layer}intermediate.dense.weight"]
    np.testing.assert_array_equal(layer["intermediate"]["kernel"], inner.T)
    norm = tensors[f"{their_layer}attention.output.LayerNorm.weight"]
    np.testing.assert_array_equal(layer["attention_norm"]["scale"], norm)
    norm = tensors[f"{their_layer}output.LayerNorm.bias"]
    np.testing.assert_array_equal(layer["output_norm"]["bias"], norm)
    # Each tensor is used once, and the whole is what the encoder expects.
    used = sorted(leaf.sum(dtype="f8") for leaf in jax.tree.leaves(params))
    np.testing.assert_allclose(used, sorted(x.sum(dtype="f8") for x in tensors.values()))
    encoder = nnx.to_pure_dict(nnx.state(Encoder(ARCHITECTURE, rngs=nnx.Rngs(0)), nnx.Param))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, encoder)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


@pytest.mark.parametrize("prefix", ["bert.", "roberta.", "0.auto_model."])
def test_prefixes_and_heads(tmp_path, tensors, prefix):
    expected = hf_weights.read_tower(save(tmp_path / "plain", tensors), ARCHITECTURE)
    other = {prefix + name: value for name, value in tensors.items()}
    extras = ("cls.predictions.bias", "lm_head.dense.weight", "classifier.bias", "mlp.dense.weight")
    other |= {name: np.ones(3, "f4") for name in extras}
    other[prefix + "embeddings.position_ids"] = np.arange(LONGEST)[None]
    folder = save(tmp_path / "prefixed", other)
    assert_equal(hf_weights.read_tower(folder, ARCHITECTURE), expected)


def test_old_layer_norm_names(tmp_path, tensors):
    expected = hf_weights.read_tower(save(tmp_path / "new", tensors), ARCHITECTURE)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in tensors.items()
    }
    assert "encoder.layer.0.output.LayerNorm.gamma" in old
    assert_equal(hf_weights.read_tower(save(tmp_path / "old", old), ARCHITECTURE), expected)
    both = old | {"embeddings.LayerNorm.weight": tensors["embeddings.LayerNorm.weight"]}
    with pytest.raises(UserError, match="embeddings.LayerNorm.weight twice"):
        hf_weights.read_tower(save(tmp_path / "both", both), ARCHITECTURE)


def shard(folder, tensors):
    folder.mkdir()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[:10], names[10:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= {name: file for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_sharded(tmp_path, tensors):
    expected = hf_weights.read_tower(save(tmp_path / "whole", tensors), ARCHITECTURE)
    folder = shard(tmp_path / "sharded", tensors)
    assert_equal(hf_weights.read_tower(folder, ARCHITECTURE), expected)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors: damaged.* or absent"):
        hf_weights.read_tower(folder, ARCHITECTURE)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened(tmp_path, tensors, dtype):
    half = {name: value.astype(dtype) for name, value in tensors.items()}
    expected = {name: value.astype(np.float32) for name, value in half.items()}
    wide = hf_weights.read_tower(save(tmp_path / "half", half), ARCHITECTURE)
    assert_equal(wide, hf_weights.read_tower(save(tmp_path / "wide", expected), ARCHITECTURE))


def test_other_number_formats_are_refused(tmp_path, tensors):
    tensors["pooler.dense.weight"] = np.ones((HIDDEN, HIDDEN), np.int8)
    with pytest.raises(UserError, match="pooler.dense.weight is I8"):
        hf_weights.read_tower(save(tmp_path, tensors), ARCHITECTURE)


def test_absent_pooler_is_drawn_and_said(tmp_path, tensors, caplog):
    wide = Architecture(hidden_size=128, num_layers=1, num_heads=2, intermediate_size=8)
    encoder = nnx.to_pure_dict(nnx.state(Encoder(wide, rngs=nnx.Rngs(0)), nnx.Param))
    hf_weights.write_tower(tmp_path, wide, encoder)
    tensors = load_file(tmp_path / "model.safetensors")
    kernel, bias = tensors.pop("pooler.dense.weight"), tensors.pop("pooler.dense.bias")
    save_file(tensors, tmp_path / "model.safetensors")

    pooler = hf_weights.read_tower(tmp_path, wide)["pooler"]
    assert "has no pooler" in caplog.text and len(caplog.records) == 1
    assert not np.array_equal(pooler["kernel"], kernel.T)
    assert abs(pooler["kernel"].std() - 0.02) < 0.001 and abs(pooler["kernel"].mean()) < 0.001
    np.testing.assert_array_equal(pooler["bias"], 0)
    assert pooler["kernel"].dtype == pooler["bias"].dtype == np.float32
    assert_equal(hf_weights.read_tower(tmp_path, wide)["pooler"], pooler)
    other = hf_weights.read_tower(tmp_path, wide, key=jax.random.key(1))["pooler"]
    assert not np.array_equal(other["kernel"], pooler["kernel"])

    save_file(tensors | {"pooler.dense.bias": bias}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="pooler.dense.weight missing"):
        hf_weights.read_tower(tmp_path, wide)


def test_absent_token_types_are_zeros(tmp_path, tensors):
    del tensors["embeddings.token_type_embeddings.weight"]
    params = hf_weights.read_tower(save(tmp_path, tensors), ARCHITECTURE)
    token_type = params["embeddings"]["token_type"]["embedding"]
    np.testing.assert_array_equal(token_type, np.zeros((2, HIDDEN), "f4"))


def test_one_error_lists_all_misfits(tmp_path, tensors):
    del tensors["encoder.layer.0.output.dense.bias"]
    del tensors["embeddings.word_embeddings.weight"]
    tensors["encoder.layer.2.output.dense.bias"] = np.ones(HIDDEN, "f4")
    tensors["something.weight"] = np.ones(1, "f4")
    tensors["pooler.dense.bias"] = np.ones(HIDDEN + 1, "f4")
    tensors["embeddings.LayerNorm.bias"][3] = np.nan
    with pytest.raises(UserError) as error:
        hf_weights.read_tower(save(tmp_path, tensors), ARCHITECTURE)
    message = str(error.value)
    for problem in (
        "6 tensors",
        "encoder.layer.0.output.dense.bias missing",
        "embeddings.word_embeddings.weight missing",
        "encoder.layer.2.output.dense.bias extra",
        "something.weight extra",
        f"pooler.dense.bias has shape [{HIDDEN + 1}], not [{HIDDEN}]",
        "embeddings.LayerNorm.bias not finite",
        str(tmp_path),
    ):
        assert problem in message
    assert "\n" not in message


def test_transposed_kernel_is_a_misfit(tmp_path, tensors):
    name = "encoder.layer.0.output.dense.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    with pytest.raises(UserError, match=r"has shape \[16, 8\], not \[8, 16\]"):
        hf_weights.read_tower(save(tmp_path, tensors), ARCHITECTURE)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"version https://git"])
def test_damaged_file(tmp_path, tensors, damage):
    path = save(tmp_path, tensors) / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="model.safetensors: damaged"):
        hf_weights.read_tower(tmp_path, ARCHITECTURE)


def test_no_weights(tmp_path):
    with pytest.raises(UserError, match="no model.safetensors"):
        hf_weights.read_tower(tmp_path, ARCHITECTURE)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="no weight_map"):
        hf_weights.read_tower(tmp_path, ARCHITECTURE)


def test_pickled_weights_are_refused_with_the_conversion_that_works(tmp_path, tensors):
    expected = hf_weights.read_tower(save(tmp_path / "right", tensors), ARCHITECTURE)
    folder = tmp_path / "it's old"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="only pytorch_model.bin") as error:
        hf_weights.read_tower(folder, ARCHITECTURE)

    torch = pytest.importorskip("torch", reason="the conversion itself needs torch")
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    tied = "cls.predictions.decoder.weight"
    state[tied] = state["embeddings.word_embeddings.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    command = str(error.value).partition("python -c ")[2].strip()
    subprocess.run(["bash", "-c", f"{sys.executable} -c {command}"], check=True)
    assert_equal(hf_weights.read_tower(folder, ARCHITECTURE), expected)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_written_folder_reads_back_and_writes_the_same_bytes(tmp_path, tensors, family):
    architecture = Architecture(
        family=family,
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_layers=2,
        num_heads=4,
        intermediate_size=INNER,
        max_positions=LONGEST,
        type_vocab_size=2,
        layer_norm_eps=1e-5,
        pad_token_id=3,
    )
    params = hf_weights.read_tower(save(tmp_path / "made", tensors), architecture)
    once, again = tmp_path / "new" / "once", tmp_path / "again"
    hf_weights.write_tower(once, architecture, params)
    assert hf_config.read_architecture(once) == architecture
    read = hf_weights.read_tower(once, architecture)
    assert_equal(read, params)
    hf_weights.write_tower(again, architecture, jax.tree.map(jax.numpy.asarray, read))
    assert filecmp.cmp(once / "model.safetensors", again / "model.safetensors", shallow=False)
    with safe_open(once / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}  # older transformers refuse the file without
    written = load_file(once / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(written[name], value)


def test_write_refuses_what_does_not_fit(tmp_path, tensors):
    params = hf_weights.read_tower(save(tmp_path / "made", tensors), ARCHITECTURE)
    params["pooler"]["bias"] = np.stack([params["pooler"]["bias"]] * 2)  # a bank, not a tower
    with pytest.raises(UserError, match=r"pooler.dense.bias has shape \[2, 8\], not \[8\]"):
        hf_weights.write_tower(tmp_path / "new", ARCHITECTURE, params)
    assert not (tmp_path / "new").exists()


def test_write_into_what_is_no_folder(tmp_path, tensors):
    params = hf_weights.read_tower(save(tmp_path / "made", tensors), ARCHITECTURE)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        hf_weights.write_tower(tmp_path / "file", ARCHITECTURE, params)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_transformers_opens_the_written_folder(tmp_path, tensors, family):
    torch = pytest.importorskip("torch", reason="opens the folder with torch's AutoModel")
    from transformers import AutoModel

    folder = save(tmp_path / "made", tensors, model_type=family, pad_token_id=1)
    architecture = hf_config.read_architecture(folder)
    hf_weights.write_tower(
        tmp_path / "new", architecture, hf_weights.read_tower(folder, architecture)
    )
    model, info = AutoModel.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert type(model).__name__ == {"bert": "BertModel", "roberta": "RobertaModel"}[family]
    assert not any(info.values())
    state = model.state_dict()
    for name, value in tensors.items():
        assert torch.equal(state[name], torch.tensor(value)), name
    assert model.config.hidden_act == "gelu" and model.dtype == torch.float32
    assert model.config.layer_norm_eps == 1e-12 and model.config.pad_token_id == 1


@pytest.mark.parametrize("wrapper", ["module.", "model.", "0.auto_model.", "module.model."])
@pytest.mark.parametrize("inner", ["bert.", "encoder."])
def test_prefix_before_encoder_and_head(tmp_path, tensors, wrapper, inner):
    head = {
        "cls.predictions.transform.dense.weight": np.ones((HIDDEN, HIDDEN), np.float32),
        "cls.predictions.transform.dense.bias": np.full(HIDDEN, 2, np.float32),
        "cls.predictions.transform.LayerNorm.gamma": np.full(HIDDEN, 3, np.float32),
        "cls.predictions.transform.LayerNorm.beta": np.full(HIDDEN, 4, np.float32),
        "cls.predictions.bias": np.full(VOCAB, 5, np.float32),
    }
    named = {wrapper + inner + name: value for name, value in tensors.items()}
    named |= {wrapper + name: value for name, value in head.items()}
    folder = save(tmp_path / "wrapped", named)
    expected = hf_weights.read_tower(save(tmp_path / "plain", tensors), ARCHITECTURE)
    assert_equal(hf_weights.read_tower(folder, ARCHITECTURE), expected)
    found = hf_weights.read_mlm_head(folder, ARCHITECTURE)
    assert found is not None
    assert [leaf.flat[0] for leaf in (found["dense"]["bias"], found["norm"]["scale"])] == [2, 3]
    assert found["bias"].tolist() == [5] * VOCAB
