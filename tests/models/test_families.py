"""Each family against transformers' torch model: hidden states, packed rows, crossed values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CASES, LENGTHS, one_row, sentences, torch_family, torch_hidden
from flax import nnx
from torch_models import torch_model

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.batch import Batch
from jtcse_jax.errors import UserError
from jtcse_jax.families.registry import FAMILIES
from jtcse_jax.models.encoders import encoder_class
from jtcse_jax.models.relative import distance_buckets
from jtcse_jax.models.towers import Bank, stack
from jtcse_jax.store import hf_config, hf_weights
from jtcse_jax.training.flops import Work, forward_flops


def encoder_of(folder):
    """The encoder of a folder, with its weights."""
    architecture = hf_config.read_architecture(folder)
    params = hf_weights.read_tower(folder, architecture)
    encoder = encoder_class(architecture)(architecture, rngs=nnx.Rngs(0))
    graph, state = nnx.split(encoder)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, params))
    return nnx.merge(graph, state)


def assert_near(ours, theirs):
    difference = np.linalg.norm(np.asarray(ours) - theirs)
    assert difference < 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize("family", CASES)
def test_hidden_states_equal_transformers(tmp_path, family):
    model = torch_family(tmp_path, family)
    tokens, mask = sentences()
    theirs = torch_hidden(model, tokens, mask)
    encoder = encoder_of(tmp_path)
    positions = np.broadcast_to(np.arange(mask.shape[1], dtype=np.int32), mask.shape)
    hidden, _ = encoder(tokens, positions, mask.astype(np.int32))
    assert_near(hidden[mask], theirs[mask])

    row, positions, segments, starts = one_row(tokens)
    packed, _ = encoder(row, positions, segments)
    assert np.isfinite(packed).all()
    for number, start in starts.items():
        length = LENGTHS[number]
        assert_near(packed[0, start : start + length], theirs[number, :length])
    places = np.array([list(starts.values())], np.int32)
    firsts, _ = encoder(row, positions, segments, places=jnp.asarray(places))
    assert_near(firsts[0], theirs[list(starts), 0])


@pytest.mark.parametrize("family", CASES)
def test_a_crossed_layer_weights_the_values_of_the_neighbour(tmp_path, family):
    """In torch the neighbour's values are put into the last layer by a hook."""
    towers = [torch_family(tmp_path / str(seed), family, seed) for seed in range(2)]
    tokens, mask = (part[2:3, :9] for part in sentences())
    values = [module_output(tower, CASES[family][2], tokens, mask) for tower in towers]
    expected = [
        with_values(tower, CASES[family][2], values[1 - k], tokens, mask)
        for k, tower in enumerate(towers)
    ]
    architecture = hf_config.read_architecture(tmp_path / "0")
    bank = Bank(architecture, 2, cross=Cross("side", "value", 1))
    params = stack([hf_weights.read_tower(tmp_path / str(k), architecture) for k in range(2)])
    zeros = np.zeros((1, 1), np.int32)
    positions = np.arange(9, dtype=np.int32)[None]
    batch = Batch(tokens, positions, np.ones_like(tokens), zeros, zeros[0], np.ones(1, bool))
    outputs = bank.apply(params, batch, crossed=True)
    for k in range(2):
        assert_near(outputs.crossed[k, 0], expected[k][0, 0])
        assert np.abs(outputs.crossed[k] - outputs.hidden[k]).max() > 0.1


def module_output(model, name, tokens, mask):
    found = []
    hook = model.get_submodule(name).register_forward_hook(lambda *call: found.append(call[2]))
    torch_hidden(model, tokens, mask)
    hook.remove()
    return found[0]


def with_values(model, name, values, tokens, mask):
    """Hidden states if the module gives these values; its queries and keys stay, if it has any."""
    import torch

    def replace(module, inputs, output):
        own = output[..., : output.shape[-1] - 24]
        return torch.cat([own, values[..., -24:]], dim=-1)

    hook = model.get_submodule(name).register_forward_hook(replace)
    hidden = torch_hidden(model, tokens, mask)
    hook.remove()
    return hidden


@pytest.mark.parametrize("family", CASES)
def test_transformers_opens_the_written_folder(tmp_path, family):
    model = torch_family(tmp_path / "made", family)
    architecture = hf_config.read_architecture(tmp_path / "made")
    params = hf_weights.read_tower(tmp_path / "made", architecture)
    hf_weights.write_tower(tmp_path / "new", architecture, params)
    from transformers import AutoModel

    written, info = AutoModel.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert type(written) is type(model) and not any(info.values())
    tokens, mask = sentences()
    theirs, again = (torch_hidden(each.eval(), tokens, mask) for each in (model, written))
    np.testing.assert_array_equal(again, theirs)
    assert hf_config.read_architecture(tmp_path / "new") == architecture


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_activations_are_those_of_transformers(tmp_path, name):
    sizes = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 1, "hidden_act": name}
    more = {"num_attention_heads": 2, "intermediate_size": 20, "max_position_embeddings": 200}
    model = torch_model(tmp_path, "bert", seed=1, **sizes, **more)
    tokens, mask = sentences(pad=0)
    encoder = encoder_of(tmp_path)
    positions = np.broadcast_to(np.arange(mask.shape[1], dtype=np.int32), mask.shape)
    hidden, _ = encoder(tokens, positions, mask.astype(np.int32))
    assert_near(hidden[mask], torch_hidden(model, tokens, mask)[mask])


def test_distances_are_in_the_buckets_of_mpnet():
    torch = pytest.importorskip("torch", reason="compares with transformers' own buckets")
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distances = np.arange(-600, 601)
    theirs = MPNetEncoder.relative_position_bucket(torch.tensor(distances)).numpy()
    np.testing.assert_array_equal(distance_buckets(jnp.asarray(distances)), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient(family):
    """The bank crosses and has dropout; only embeddings of tokens in the batch get one."""
    architecture = Architecture(
        family=family,
        vocab_size=12,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        max_positions=32,
        embedding_size=8,
        global_every=2,
    )
    bank = Bank(architecture, 2, dropout=0.1, cross=Cross("side", "value", 1))
    tokens = np.arange(12, dtype=np.int32)[None]
    positions = np.arange(12, dtype=np.int32)[None] % 6
    segments = 1 + np.arange(12, dtype=np.int32)[None] // 6
    places, order = np.array([[0, 6]], np.int32), np.array([0, 1], np.int32)
    batch = Batch(tokens, positions, segments, places, order, np.ones(2, bool))

    @jax.jit
    def gradient(params):
        def loss(params):
            outputs = bank.apply(params, batch, key=jax.random.key(0), crossed=True)
            return sum(jnp.sin(3 * part + jnp.arange(16)).sum() for part in outputs)

        return jax.grad(loss)(params)

    found = gradient(bank.init(0))
    for path, leaf in jax.tree.leaves_with_path(found):
        name = jax.tree_util.keystr(path)
        if "'key']['bias'" not in name:  # softmax takes no notice of it
            assert all(np.abs(tower).max() > 1e-7 for tower in leaf), name


def test_the_gate_is_counted():
    small = Architecture(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24)
    work = Work(10.0, 50.0, 2.0)
    gated = forward_flops(dataclasses.replace(small, family="modernbert"), work, pooling="mean")
    assert gated - forward_flops(small, work, pooling="mean") == 2 * 10 * 16 * 24


def test_modernbert_with_other_layers_is_refused(tmp_path):
    torch_family(
        tmp_path, "modernbert", layer_types=["full_attention"] * 2 + ["sliding_attention"] * 2
    )
    with pytest.raises(UserError, match="config.json: layer_types"):
        hf_config.read_architecture(tmp_path)
