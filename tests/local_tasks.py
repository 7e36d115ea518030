"""Tasks of MTEB, its own classes, on a few made-up sentences instead of the hub's data."""

from typing import Any

import numpy as np
from tiny_models import WORDS

NAMES = (
    "Banking77Classification",
    "TwentyNewsgroupsClustering.v2",
    "SciFact",
    "AskUbuntuDupQuestions",
    "BUCC.v2",
    "STSBenchmark",
)


def local_task(name: str) -> Any:
    """A new object of the task; what it would load is in it."""
    import mteb

    subsets = ["de-en", "fr-en"] if name == "BUCC.v2" else None
    return with_data(mteb.get_task(name, hf_subsets=subsets))


def with_data(task: Any) -> Any:
    """The same task with data of its kind, the same for each call."""
    task.dataset = MAKERS[task.metadata.type](np.random.default_rng(7))
    task.data_loaded = True
    task.n_experiments = task.n_clusters = 2  # of classification and of clustering; else 10
    return task


def _sentences(random: np.random.Generator, count: int) -> list[str]:
    """Of 1 to 12 words: MTEB drops some empty texts."""
    return [" ".join(random.choice(WORDS, random.integers(1, 13))) for _ in range(count)]


def _nearby(random: np.random.Generator, sentences: list[str]) -> list[str]:
    """Each with some words swapped and one more, so that scores are neither 0 nor 1 nor tied."""
    swapped = [
        [random.choice(WORDS) if random.random() < 0.3 else word for word in text.split()]
        for text in sentences
    ]
    return [" ".join([*words, random.choice(WORDS)]) for words in swapped]


def _classification(random: np.random.Generator) -> Any:
    return {split: _dataset(**_labelled(random, "text", "label")) for split in ("train", "test")}


def _clustering(random: np.random.Generator) -> Any:
    return {"test": _dataset(**_labelled(random, "sentences", "labels"))}


def _labelled(random: np.random.Generator, texts: str, labels: str) -> dict[str, list]:
    """Three classes of forty, each with favourite words."""
    classes = [int(number) for number in random.permutation(np.arange(120) % 3)]
    favourites = [WORDS[3 * number : 3 * number + 3] for number in classes]
    words = [
        [random.choice(some if random.random() < 0.6 else WORDS) for _ in range(8)]
        for some in favourites
    ]
    return {texts: [" ".join(line) for line in words], labels: classes}


def _retrieval(random: np.random.Generator) -> Any:
    documents = _sentences(random, 60)
    found = random.choice(60, 20, replace=False)
    queries = _nearby(random, [documents[number] for number in found])
    data = {
        "corpus": _dataset(
            id=[f"d{number}" for number in range(60)], title=["night"] * 60, text=documents
        ),
        "queries": _dataset(id=[f"q{number}" for number in range(20)], text=queries),
        "relevant_docs": {f"q{number}": {f"d{found[number]}": 1} for number in range(20)},
        "top_ranked": None,
    }
    return {"default": {"test": data}}


def _reranking(random: np.random.Generator) -> Any:
    dataset = _retrieval(random)
    data = dataset["default"]["test"]
    data["top_ranked"] = {
        query: sorted({*wanted, *(f"d{number}" for number in random.choice(60, 15))})
        for query, wanted in data["relevant_docs"].items()
    }
    return dataset


def _bitext(random: np.random.Generator) -> Any:
    dataset = {}
    for subset in ("de-en", "fr-en"):
        first = _sentences(random, 30)
        dataset[subset] = {
            "test": _dataset(sentence1=first, sentence2=_nearby(random, first)),
        }
    return dataset


def _sts(random: np.random.Generator) -> Any:
    first = _sentences(random, 40)
    second = [
        text if random.random() < 0.5 else other
        for text, other in zip(_nearby(random, first), _sentences(random, 40), strict=True)
    ]
    shared = [
        len(set(one.split()) & set(two.split())) / 9 + 0.2 * random.random()
        for one, two in zip(first, second, strict=True)
    ]
    return {"test": _dataset(sentence1=first, sentence2=second, score=[5 * x for x in shared])}


def _dataset(**columns: list) -> Any:
    import datasets

    return datasets.Dataset.from_dict(columns)


MAKERS = {
    "Classification": _classification,
    "Clustering": _clustering,
    "Retrieval": _retrieval,
    "Reranking": _reranking,
    "BitextMining": _bitext,
    "STS": _sts,
}
