"""Masked language modelling: what is hidden, the head against transformers', and whole runs."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_cases import TINY, make_bank, make_batch
from runs import saved_params, tiny_config

from jtcse_jax.architecture import Architecture
from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.errors import UserError
from jtcse_jax.models import mlm_head
from jtcse_jax.models.towers import Bank, stack
from jtcse_jax.store import hf_config, hf_weights
from jtcse_jax.training import losses, objectives
from jtcse_jax.training.masking import mask_tokens
from jtcse_jax.training.trainer import find_mask_token, train

MASK = 4


def make_rows(rows: int = 64, length: int = 64):
    """Rows of sentences of 3 to 12 tokens, fillers behind; every token is 10 or more."""
    rng = np.random.default_rng(0)
    segments = np.zeros((rows, length), np.int32)
    for row in segments:
        start = slot = 0
        while (stop := start + int(rng.integers(3, 13))) <= length - 5:
            slot += 1
            row[start:stop] = slot
            start = stop
    tokens = rng.integers(10, 1000, segments.shape)
    return jnp.array(np.where(segments > 0, tokens, 0), jnp.int32), jnp.array(segments)


def is_word(segments, row, place):
    line = segments[row]
    inside = np.flatnonzero(line == line[place])
    return line[place] > 0 and inside[0] < place < inside[-1]


def test_a_fixed_share_of_the_words_of_each_row_is_hidden():
    tokens, segments = make_rows()
    masked = mask_tokens(
        tokens, segments, jax.random.key(0), share=0.15, mask_id=MASK, vocab_size=1000
    )
    tokens, segments = np.asarray(tokens), np.asarray(segments)
    fates = {"mask": 0, "same": 0, "random": 0}
    for row in range(len(tokens)):
        places = np.asarray(masked.places[row])[np.asarray(masked.chosen[row])]
        assert all(is_word(segments, row, place) for place in places)
        words = sum(is_word(segments, row, place) for place in range(tokens.shape[1]))
        assert len(set(places)) == len(places) == max(1, round(0.15 * words))
        np.testing.assert_array_equal(
            np.asarray(masked.targets[row])[np.asarray(masked.chosen[row])], tokens[row, places]
        )
        untouched = np.setdiff1d(np.arange(tokens.shape[1]), places)
        np.testing.assert_array_equal(masked.tokens[row, untouched], tokens[row, untouched])
        for place in places:
            now = int(masked.tokens[row, place])
            fates["mask" if now == MASK else "same" if now == tokens[row, place] else "random"] += 1
    total = sum(fates.values())
    for fate, share in {"mask": 0.8, "same": 0.1, "random": 0.1}.items():
        deviation = math.sqrt(share * (1 - share) / total)
        assert abs(fates[fate] / total - share) < 4 * deviation, (fate, fates)


def test_every_word_is_hidden_equally_often_and_a_key_decides_which():
    tokens, segments = make_rows(rows=1)
    draw = jax.jit(
        jax.vmap(
            lambda key: mask_tokens(
                tokens, segments, key, share=0.15, mask_id=MASK, vocab_size=1000
            )
        )
    )
    masked = draw(jax.random.split(jax.random.key(1), 2000))
    counts = np.bincount(np.asarray(masked.places)[np.asarray(masked.chosen)], minlength=64)
    words = [is_word(np.asarray(segments), 0, place) for place in range(64)]
    assert not counts[~np.array(words)].any()
    expected = counts.sum() / sum(words)
    assert np.abs(counts[words] - expected).max() < 5 * math.sqrt(expected)
    again = draw(jax.random.split(jax.random.key(1), 2000))
    np.testing.assert_array_equal(masked.tokens, again.tokens)


def test_rows_of_fillers_hide_nothing_and_short_rows_one_word():
    segments = jnp.zeros((2, 16), jnp.int32).at[0, :3].set(1)
    tokens = jnp.full((2, 16), 9, jnp.int32)
    masked = mask_tokens(
        tokens, segments, jax.random.key(0), share=0.15, mask_id=MASK, vocab_size=20
    )
    assert masked.chosen.sum(axis=1).tolist() == [1, 0]
    assert masked.places[0, 0] == 1


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_head_is_that_of_transformers(family):
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    transformers = pytest.importorskip("transformers")
    size, vocabulary = 16, 40
    fields = {
        "vocab_size": vocabulary,
        "hidden_size": size,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "layer_norm_eps": 1e-5,
    }
    torch.manual_seed(0)
    kind = {"bert": "Bert", "roberta": "Roberta"}[family]
    model = getattr(transformers, f"{kind}ForMaskedLM")(
        getattr(transformers, f"{kind}Config")(**fields)
    )
    module = model.cls if family == "bert" else model.lm_head
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    own = module.predictions if family == "bert" else module
    dense = own.transform.dense if family == "bert" else own.dense
    norm = own.transform.LayerNorm if family == "bert" else own.layer_norm
    array = lambda tensor: jnp.array(tensor.detach().numpy())  # noqa: E731
    head = {
        "dense": {"kernel": array(dense.weight).T, "bias": array(dense.bias)},
        "norm": {"scale": array(norm.weight), "bias": array(norm.bias)},
        "bias": array(own.bias),
    }
    hidden = np.random.default_rng(0).normal(size=(7, size)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(hidden)).numpy()
    shape = Architecture(family=family, layer_norm_eps=1e-5)
    embedding = array(model.get_input_embeddings().weight)
    found = mlm_head.logits(head, embedding, jnp.array(hidden), shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    half = mlm_head.logits(head, embedding, jnp.array(hidden, jnp.bfloat16), shape)
    assert half.dtype == jnp.float32
    assert np.abs(half - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_continued_training_guesses_as_transformers_does(family, tmp_path):
    """Whole model, tied decoder and all, from the folder that transformers saved."""
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    transformers = pytest.importorskip("transformers")
    kind = {"bert": "Bert", "roberta": "Roberta"}[family]
    fields = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 20,
        "pad_token_id": 1 if family == "roberta" else 0,
    }
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForMaskedLM")(
        getattr(transformers, f"{kind}Config")(**fields)
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    ids = torch.randint(5, 40, (1, 9))
    with torch.no_grad():
        expected = model(ids, attention_mask=torch.ones_like(ids)).logits[0].numpy()

    architecture = hf_config.read_architecture(tmp_path)
    tower = hf_weights.read_tower(tmp_path, architecture)
    head = hf_weights.read_mlm_head(tmp_path, architecture)
    bank = Bank(architecture, 1)
    zeros = np.zeros((1, 1), np.int32)
    batch = Batch(
        ids.numpy().astype(np.int32),
        np.arange(9, dtype=np.int32)[None],
        np.ones((1, 9), np.int32),
        zeros,
        zeros[0],
        np.ones(1, bool),
    )
    hidden = bank.hidden_states(stack([tower]), batch)[0, 0]
    found = mlm_head.logits(head, tower["embeddings"]["word"]["embedding"], hidden, architecture)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    again = mlm_head.init(architecture, 1, jax.random.key(0))
    assert jax.tree.map(np.shape, again) == jax.tree.map(lambda leaf: (1, *leaf.shape), head)
    getattr(transformers, f"{kind}Model")(model.config).save_pretrained(tmp_path / "bare")
    assert hf_weights.read_mlm_head(tmp_path / "bare", architecture) is None


def test_token_cross_entropy_is_that_of_each_token():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(3, 4, 9)), rng.integers(0, 9, (3, 4))
    expected = [
        -math.log(math.exp(logits[i][targets[i]]) / sum(math.exp(v) for v in logits[i]))
        for i in np.ndindex(3, 4)
    ]
    found = losses.token_cross_entropy(jnp.array(logits), jnp.array(targets))
    np.testing.assert_allclose(found, np.reshape(expected, (3, 4)), rtol=1e-5)


def test_the_objective_guesses_from_the_rest_and_trains_head_and_tied_embedding():
    """Against the pieces put together by hand, tower by tower."""
    bank, batch = make_bank(2), make_batch()
    config = ObjectiveConfig(name="mlm", mask_token_id=MASK, mask_share=0.5)
    params = objectives.init_params(bank, bank.init(0), jax.random.key(1), config)
    assert params["head"]["bias"].shape == (2, TINY.vocab_size)
    key = jax.random.key(2)

    def loss_of(params):
        return objectives.OBJECTIVES["mlm"](bank, params, batch, key, config)

    (loss, terms), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    masked = mask_tokens(
        jnp.array(batch.tokens),
        jnp.array(batch.segments),
        jax.random.split(key)[0],
        share=0.5,
        mask_id=MASK,
        vocab_size=TINY.vocab_size,
    )
    hidden = bank.hidden_states(params["towers"], batch._replace(tokens=masked.tokens))
    expected, right, count = 0.0, 0, 0
    for tower in range(2):
        head = jax.tree.map(lambda leaf: leaf[tower], params["head"])  # noqa: B023
        embedding = params["towers"]["embeddings"]["word"]["embedding"][tower]
        costs = []
        for row, place in zip(*np.nonzero(np.asarray(masked.chosen)), strict=True):
            state = hidden[tower, row, masked.places[row, place]]
            scores = np.asarray(mlm_head.logits(head, embedding, state, TINY))
            target = int(masked.targets[row, place])
            costs.append(math.log(np.exp(scores).sum()) - scores[target])
            right += scores.argmax() == target
            count += 1
        expected += np.mean(costs)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(terms["accuracy"]) == pytest.approx(right / count, abs=1e-6)
    for leaf in jax.tree.leaves(grads["head"]):
        assert np.abs(leaf).max() > 0
    unseen = np.setdiff1d(np.arange(TINY.vocab_size), np.asarray(masked.tokens))
    # only the decoder reads these rows of the embedding
    assert np.abs(grads["towers"]["embeddings"]["word"]["embedding"][:, unseen]).max() > 0


def mlm_config(folder, **fields):
    config = tiny_config(folder)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, towers=("scratch",)),
        data=dataclasses.replace(config.data, pairs="none", dev=None),
        objective=ObjectiveConfig(name="mlm"),
        **fields,
    )


def test_a_run_learns_resumes_exactly_and_leaves_a_tower(tmp_path, capsys):
    whole = mlm_config(tmp_path, max_steps=12)
    train(whole, devices=jax.devices()[:1])
    said = capsys.readouterr().out
    losses_said = [
        float(line.split("loss ")[1].split()[0])
        for line in said.splitlines()
        if line.startswith("step") and "loss" in line
    ]
    assert losses_said[-1] < losses_said[0]
    assert "negatives" not in said and "accuracy" in said
    halves = dataclasses.replace(whole, workdir=str(tmp_path / "halves"), max_steps=6)
    train(halves, devices=jax.devices()[:1])
    train(dataclasses.replace(halves, max_steps=12), devices=jax.devices()[:1])
    for one, other in zip(
        jax.tree.leaves(saved_params(whole.workdir)),
        jax.tree.leaves(saved_params(halves.workdir)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_a_tokenizer_without_masking_token_is_named():
    class Tokenizer:
        mask_token_id = None

    with pytest.raises(UserError, match="objective.mask_token_id"):
        find_mask_token(ObjectiveConfig(name="mlm"), Tokenizer(), 9)
    for number in (-1, 9):
        with pytest.raises(UserError, match=f"mask_token_id = {number}: choose from 0 to 8"):
            find_mask_token(ObjectiveConfig(name="mlm", mask_token_id=number), Tokenizer(), 9)
    given = ObjectiveConfig(name="mlm", mask_token_id=3)
    assert find_mask_token(given, Tokenizer(), 9) == given
    assert find_mask_token(ObjectiveConfig(), Tokenizer(), 9).mask_token_id is None


def test_mlm_and_pairs_exclude_each_other(tmp_path):
    config = tiny_config(tmp_path)
    with pytest.raises(UserError, match="objective.name = mlm and data.pairs = same"):
        dataclasses.replace(config, objective=ObjectiveConfig(name="mlm"))
    with pytest.raises(UserError, match="data.pairs = none"):
        dataclasses.replace(config, data=dataclasses.replace(config.data, pairs="none"))
    with pytest.raises(UserError, match="objective.mask_share = 1.0"):
        ObjectiveConfig(mask_share=1.0)
