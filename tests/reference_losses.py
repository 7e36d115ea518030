"""Each loss as slow loops in numpy."""

import math

import numpy as np

TEMPERATURE = 0.05


def reference_cosine(u, v):
    return float(np.dot(u, v) / (np.linalg.norm(u) * np.linalg.norm(v)))


def reference_info_nce(x, y, temperature=TEMPERATURE):
    total = 0.0
    for r in range(len(x)):
        partner = r + 1 if r % 2 == 0 else r - 1
        scores = {s: reference_cosine(x[r], y[s]) / temperature for s in range(len(y)) if s != r}
        total += math.log(sum(math.exp(v) for v in scores.values())) - scores[partner]
    return total / len(x)


def reference_other_view(x, y, temperature=TEMPERATURE):
    total, sentences = 0.0, len(x) // 2
    for i in range(sentences):
        scores = [reference_cosine(x[2 * i], y[2 * j + 1]) / temperature for j in range(sentences)]
        total += math.log(sum(math.exp(v) for v in scores)) - scores[i]
    return total / sentences


def reference_ictm(x, y, p, q, modulus_half=True):
    total = 0.0
    for r in range(0, len(x), 2):
        cosine = reference_cosine(x[r], y[r + 1])
        direction = -math.log(cosine if cosine > 0 else 1e-4)
        modulus = np.linalg.norm(p[r] - q[r + 1]) / (
            np.linalg.norm(p[r]) + np.linalg.norm(q[r + 1])
        )
        total += direction * modulus / (2 if modulus_half else 1)
    return total / (len(x) // 2)


def reference_alignment(x):
    distances = []
    for i in range(0, len(x), 2):
        u, v = x[i] / np.linalg.norm(x[i]), x[i + 1] / np.linalg.norm(x[i + 1])
        distances.append(sum((a - b) ** 2 for a, b in zip(u, v, strict=True)))
    return float(np.mean(distances))


def reference_uniformity(x):
    potentials = []
    for i in range(len(x)):
        for j in range(i):
            u, v = x[i] / np.linalg.norm(x[i]), x[j] / np.linalg.norm(x[j])
            potentials.append(math.exp(-2 * float(np.sum((u - v) ** 2))))
    return math.log(np.mean(potentials))
