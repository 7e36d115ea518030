"""Towers by a numpy loop, one sentence and one tower at a time: no dropout, no packing, float64."""

import jax
import numpy as np
from scipy.special import erf


def towers_by_loop(architecture, params, sentences, cross, pooling):
    """(hidden, pooled, crossed), each [K, sentences, D]."""
    towers_params = [
        jax.tree.map(lambda leaf, k=k: np.asarray(leaf[k], np.float64), params)
        for k in range(len(params["pooler"]["bias"]))
    ]
    outputs = [
        one_sentence(architecture, towers_params, tokens, cross, pooling) for tokens in sentences
    ]
    return tuple(np.stack(part, axis=1) for part in zip(*outputs, strict=True))


def one_sentence(architecture, params, tokens, cross, pooling):
    num_towers, num_layers = len(params), architecture.num_layers
    plain = [embed(architecture, tower, tokens) for tower in params]
    crossing = list(plain)
    for number in range(1, num_layers + 1):
        crosses = cross.num_layers and number % (num_layers // cross.num_layers) == 0
        layer = [tower["layers"][number - 1] for tower in params]
        if crosses:
            probs, values = zip(
                *(attend(architecture, layer[k], crossing[k]) for k in range(num_towers)),
                strict=True,
            )
            neighbour = [(k + 1) % num_towers for k in range(num_towers)]
            if cross.exchange == "value":
                values = [values[n] for n in neighbour]
            else:
                probs = [probs[n] for n in neighbour]
            crossing = [
                finish(architecture, layer[k], crossing[k], probs[k], values[k])
                for k in range(num_towers)
            ]
        else:
            crossing = [
                finish(architecture, layer[k], x, *attend(architecture, layer[k], x))
                for k, x in enumerate(crossing)
            ]
        plain = [
            finish(architecture, layer[k], x, *attend(architecture, layer[k], x))
            for k, x in enumerate(plain)
        ]
    if cross.mode == "main":
        plain = crossing
    hidden, crossed = (
        np.stack([x[0] if pooling == "cls" else x.mean(axis=0) for x in streams])
        for streams in (plain, crossing)
    )
    pooled = [np.tanh(dense(tower["pooler"], h)) for tower, h in zip(params, hidden, strict=True)]
    return hidden, np.stack(pooled), crossed


def embed(architecture, tower, tokens):
    tables = tower["embeddings"]
    first = architecture.pad_token_id + 1 if architecture.family == "roberta" else 0
    positions = tables["position"]["embedding"][first : first + len(tokens)]
    summed = tables["word"]["embedding"][tokens] + positions + tables["token_type"]["embedding"][0]
    return layer_norm(architecture, tables["norm"], summed)


def attend(architecture, layer, x):
    """Probabilities [H, T, T] and values [H, T, D / H]."""
    query, key, value = (
        np.stack(np.split(dense(layer["attention"][name], x), architecture.num_heads, axis=-1))
        for name in ("query", "key", "value")
    )
    scores = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]))
    return scores / scores.sum(axis=-1, keepdims=True), value


def finish(architecture, layer, x, probs, values):
    context = dense(layer["attention"]["output"], np.concatenate(list(probs @ values), axis=-1))
    x = layer_norm(architecture, layer["attention_norm"], x + context)
    inner = dense(layer["intermediate"], x)
    inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
    return layer_norm(architecture, layer["output_norm"], x + dense(layer["output"], inner))


def dense(weights, x):
    return x @ weights["kernel"] + weights["bias"]


def layer_norm(architecture, weights, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt(x.var(axis=-1, keepdims=True) + architecture.layer_norm_eps)
    return centred / scale * weights["scale"] + weights["bias"]
