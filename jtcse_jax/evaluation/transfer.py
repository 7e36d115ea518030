"""Transfer tasks: the accuracy of a linear classifier on an encoder's frozen embeddings.

The protocol is SentEval's (Conneau and Kiela 2018, arXiv 1803.05449), except that features are
standardised, so that the tried strengths of regularisation suit embeddings of any norm. SentEval's
own strengths, 2^-2 to 2^5, are too weak or too strong if vectors have a large or small norm, and a
foreign encoder would be judged by its scale.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.sts import Encode, encode_distinct
from jtcse_jax.evaluation.transfer_data import Labelled, TransferTask, load_transfer

__all__ = [
    "Classified",
    "Labelled",
    "PROTOCOL",
    "TransferTask",
    "classify",
    "cross_validate",
    "evaluate_transfer",
    "load_transfer",
    "pair_features",
]

PROTOCOL = (
    "Accuracy times 100 of an L2-regularised logistic regression on frozen embeddings (of pairs: "
    "|u-v| and u*v), standardised by the training part: MR, CR, SUBJ and MPQA by nested 10-fold "
    "cross-validation, SST2, TREC and MRPC on their test splits, C chosen on held-out training "
    "folds (SST2: on its development split)"
)
FOLDS = 10
# Ascending: each fit starts from the previous one. Ties go to the strongest regularisation.
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


class Classified(NamedTuple):
    """The predictions of a classifier for sentences that it was not trained on."""

    predicted: np.ndarray  #: [n] classes
    strengths: list[float]  #: C, the inverse of the L2 penalty: one value, or one per fold


def evaluate_transfer(
    encode: Encode, tasks: Sequence[TransferTask], *, seed: int = 0
) -> dict[str, Any]:
    """Returns accuracy by task and their unweighted "average", ready for JSON.

    Each distinct sentence of all tasks is encoded once, in one call of `encode`. The other keys are
    MRPC's "f1" (of the paraphrases), the chosen "C" (a list if each fold chose its own), the number
    of "sentences" (or pairs) scored, and the tasks "averaged". Scores are times 100.
    Cross-validated accuracy is the share of all sentences, each predicted by the fold that left it
    out. `seed` shuffles the folds; nothing else is random.

    Raises `UserError` if scikit-learn is missing, a class has too few sentences to be divided into
    folds, or an embedding is not finite, and `ValueError` if `encode` does not return [n, D].
    """
    check_installed()
    for task in tasks:
        _check_classes(task)
    splits = [split for task in tasks for split in task.splits]
    sentences = (s for split in splits for s in (*split.first, *(split.second or ())))
    embeddings, index = encode_distinct(encode, sentences)
    result: dict[str, Any] = {
        "protocol": PROTOCOL,
        "accuracy": {},
        "f1": {},
        "C": {},
        "sentences": {},
        "averaged": [task.name for task in tasks],
    }
    for task in tasks:
        classified = _classify_task(task, embeddings, index, seed)
        gold = (task.test or task.train).labels
        strengths = classified.strengths
        result["accuracy"][task.name] = _percent(np.mean(classified.predicted == gold))
        result["C"][task.name] = strengths[0] if task.test else strengths
        result["sentences"][task.name] = len(gold)
        if task.train.second is not None:
            result["f1"][task.name] = _percent(_f1(classified.predicted, gold))
    if tasks:
        result["accuracy"]["average"] = round(float(np.mean(list(result["accuracy"].values()))), 2)
    return result


def cross_validate(
    features: np.ndarray,
    labels: np.ndarray,
    folds: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    seed: int = 0,
) -> Classified:
    """Returns the class of each sentence, predicted by `classify` on the fold that leaves it out.

    Args:
      features: [n, F].
      labels: [n]; labels of predicted sentences affect neither the classifier nor its choice of C.
      folds: (training indices, predicted indices); together they predict each sentence once.
      seed: shuffles the inner folds.
    """
    predicted = np.empty_like(labels)
    strengths = []
    for train, test in folds:
        one = classify(features[train], labels[train], features[test], seed=seed)
        predicted[test] = one.predicted
        strengths += one.strengths
    return Classified(predicted, strengths)


def classify(
    features: np.ndarray,
    labels: np.ndarray,
    asked: np.ndarray,
    *,
    dev: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> Classified:
    """Returns the classes [m] of `asked` [m, F] by a logistic regression on `features` [n, F].

    C is the one of `STRENGTHS` with the highest accuracy on `dev` (features, labels) or, without
    `dev`, the highest mean accuracy over ten folds of the training part. The classifier is then
    fitted to the whole training part. Test labels are not an argument, so they cannot affect C.
    """
    if dev is None:
        splits = (
            (features[fit], labels[fit], features[held], labels[held])
            for fit, held in _folds(labels, seed)
        )
    else:
        splits = iter([(features, labels, *dev)])
    accuracies = np.mean([_accuracies(*split) for split in splits], axis=0)
    best = STRENGTHS[int(np.argmax(np.round(accuracies, 9)))]  # equal up to rounding is a tie
    scaler, model = _scaler(features), _regression()
    model.set_params(C=best).fit(scaler.transform(features), labels)
    return Classified(model.predict(scaler.transform(asked)), [best])


def pair_features(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns |u-v| and u*v of embeddings [n, D], concatenated to [n, 2D]: symmetric in u and v."""
    return np.concatenate([np.abs(first - second), first * second], axis=1)


def _classify_task(
    task: TransferTask, embeddings: np.ndarray, index: dict[str, int], seed: int
) -> Classified:
    from threadpoolctl import threadpool_limits

    train, labels = _features(task.train, embeddings, index), task.train.labels
    dev = None if task.dev is None else (_features(task.dev, embeddings, index), task.dev.labels)
    test = None if task.test is None else _features(task.test, embeddings, index)
    # The products are small: on a busy machine several threads that wait for each other take ten
    # times as long as one.
    with threadpool_limits(1):
        if test is None:
            return cross_validate(train, labels, _folds(labels, seed), seed=seed)
        return classify(train, labels, test, dev=dev, seed=seed)


def _features(split: Labelled, embeddings: np.ndarray, index: dict[str, int]) -> np.ndarray:
    first = embeddings[[index[sentence] for sentence in split.first]]
    if split.second is None:
        return first
    return pair_features(first, embeddings[[index[sentence] for sentence in split.second]])


def _folds(labels: np.ndarray, seed: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return folds.split(np.zeros(len(labels)), labels)


def _accuracies(
    features: np.ndarray, labels: np.ndarray, held: np.ndarray, held_labels: np.ndarray
) -> list[float]:
    """Accuracies on the held-out part, one for each of `STRENGTHS`."""
    scaler, model = _scaler(features), _regression()
    features, held = scaler.transform(features), scaler.transform(held)
    return [
        model.set_params(C=strength).fit(features, labels).score(held, held_labels)
        for strength in STRENGTHS
    ]


def _scaler(features: np.ndarray) -> Any:  # scikit-learn has no types
    from sklearn.preprocessing import StandardScaler

    return StandardScaler().fit(features)


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000, warm_start=True)


def _check_classes(task: TransferTask) -> None:
    _, counts = np.unique(task.train.labels, return_counts=True)
    if len(counts) < 2:
        raise UserError(
            f"{task.name}: every training sentence has the same label; give sentences of two "
            "classes or more"
        )
    needed = FOLDS + 2  # so that every inner fold of every outer fold has the class
    if task.dev is None and counts.min() < needed:
        raise UserError(
            f"{task.name}: a class has {counts.min()} sentences; {FOLDS}-fold cross-validation "
            f"needs {needed} of each: add some, or leave out the task"
        )


def check_installed() -> None:
    """Raises UserError if scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UserError(
            "the transfer tasks need the package scikit-learn: pip install scikit-learn"
        ) from error


def _f1(predicted: np.ndarray, gold: np.ndarray) -> float:
    """F1 of class 1; 0 if it neither occurs nor is predicted."""
    right = np.sum((predicted == 1) & (gold == 1))
    return float(2 * right / max(1, np.sum(predicted == 1) + np.sum(gold == 1)))


def _percent(share: float) -> float:
    return round(100 * float(share), 2)
