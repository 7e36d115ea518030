"""Model cards: what they tell of a run, and that the programs in them run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from exports import ALL_OPTIONS, SCORES, arguments, header_of, roberta_model, write_trained_run
from tiny_models import some_sentences, tiny_model, write_run

from jtcse_jax import export
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.store import exported, saved_model
from jtcse_jax.store.card import read_card
from jtcse_jax.store.ensemble import fingerprint, load_members

SENTENCES = some_sentences(12)


def test_card_tells_the_run_and_the_options(tmp_path):
    run = write_trained_run(tmp_path, tiny_model(2))
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    options = ALL_OPTIONS | {"base_model": ("org/base",)}
    options |= {"scores": str(tmp_path / "scores.json"), "dataset": ("org/text",)}
    export.export(arguments(run, tmp_path / "out", **options))
    header = header_of(tmp_path / "out")
    (index,) = header.pop("model-index")
    measured = {one["dataset"]["name"]: one["metrics"][0]["value"] for one in index["results"]}
    assert measured == {"STS12": 0.715, "STS-B": 0.8025, "dev.tsv (dev)": 0.7}
    assert header == {
        "datasets": ["org/text"],
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "license": "apache-2.0",
        "language": ["en"],
        "base_model": ["org/base"],
        "tags": ["sentence-transformers", "sentence-similarity", "feature-extraction", "jtcse"],
    }
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| STS12 | STS-B | average |" in text and "| 71.50 | 80.25 | 75.88 |" in text
    assert "`dev.tsv`, which selects the step: 70.00." in text
    for row in ("Text | `text.txt`", "Objective | `jtcse`", "Step | 4", "Learning rate | 0.001"):
        assert f"| {row} |" in text
    assert "give it the folder `tower_0`" in text
    assert (
        "at [CLS] of each of 2 towers, summed" in text and "16 tokens; longer ones are cut" in text
    )
    assert '"num_layers": 2' in text  # of the whole config
    assert "| Base model | `org/base` |" in text and "@article" in text
    assert '`query`: "the cat ", `empty`: "a=b"' in text
    settings = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == {"query": "the cat ", "empty": "a=b"}


def test_of_a_comparison_the_card_takes_the_scores_of_its_first_model(tmp_path):
    run = write_trained_run(tmp_path, tiny_model(1))
    other = {"sts": SCORES["sts"] | {"spearman": {"STS12": 1.0}}}
    texts = []
    for name, content in (("alone", SCORES), ("first", {"models": [SCORES, other]})):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        export.export(arguments(run, tmp_path / name, scores=str(path)))
        texts.append((tmp_path / name / "README.md").read_text())
    assert "71.50" in texts[0] and texts[0] == texts[1]


def test_scores_are_those_of_the_exported_model_or_it_says_so(tmp_path, caplog):
    run = write_trained_run(tmp_path, tiny_model(1))
    ours = {"fingerprint": fingerprint(load_members(run))} | SCORES
    other = {"model": "runs/other", "fingerprint": "0", "sts": SCORES["sts"]}
    other["sts"] = other["sts"] | {"spearman": {"STS12": 1.0}}
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"models": [other, ours]}))
    export.export(arguments(run, tmp_path / "ours", scores=str(path)))
    assert "71.50" in (tmp_path / "ours" / "README.md").read_text() and not caplog.records
    path.write_text(json.dumps(other))
    export.export(arguments(run, tmp_path / "other", scores=str(path)))
    (record,) = caplog.records
    assert "scores.json has the scores of runs/other" in record.getMessage()


def test_card_takes_the_dev_score_of_the_exported_step(tmp_path):
    run = write_trained_run(tmp_path, tiny_model(2))
    export.export(arguments(run, tmp_path / "out", step=6))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "selects the step: 50.00" in text and "| Step | 6 |" in text


@pytest.mark.parametrize(("name", "towers"), [("simcse", ("a",)), ("jtcse", ("scratch",) * 2)])
def test_the_config_of_the_card_has_what_the_run_used(tmp_path, name, towers):
    run = write_trained_run(tmp_path, tiny_model(1), towers=towers)
    config = json.loads((run / "train_config.json").read_text())
    config["objective"]["name"] = name
    (run / "train_config.json").write_text(json.dumps(config))
    model = read_card(saved_model.load(run)).train_config["model"]
    assert ("cross" in model, "scratch" in model) == (name == "jtcse", "scratch" in towers)


@pytest.mark.parametrize(
    ("data", "how"),
    [
        ({"source": "a.txt", "columns": []}, "without labels"),
        ({"source": "a.csv", "columns": ["text"]}, "without labels"),
        ({"source": "a.tsv.gz", "columns": []}, "on pairs of sentences by"),
        ({"source": "a.tsv", "columns": [], "pairs": "none"}, "without labels"),
        ({"source": "a.tsv", "columns": ["text"]}, "without labels"),
        ({"source": "hub:X:train:a,b,c", "columns": []}, "on pairs of sentences with hard neg"),
        ({"source": "a.csv", "columns": ["a", "b"]}, "on pairs of sentences by"),
        (
            {"source": "a.csv", "columns": ["a", "b", "c"], "positives": 2},
            "on pairs of sentences by",
        ),
        (
            {"source": "a.csv", "columns": ["a", "b", "c"]},
            "on pairs of sentences with hard negatives",
        ),
    ],
)
def test_card_tells_what_the_text_was(tmp_path, data, how):
    run = write_trained_run(tmp_path, tiny_model(1))
    config = json.loads((run / "train_config.json").read_text())
    config["data"] |= data
    (run / "train_config.json").write_text(json.dumps(config))
    exported.export(saved_model.load(run), tmp_path / "out")
    assert f"Trained {how}" in (tmp_path / "out" / "README.md").read_text()


def test_the_dev_score_is_not_listed_twice(tmp_path):
    run = write_trained_run(tmp_path, tiny_model(1))
    (tmp_path / "scores.json").write_text(
        json.dumps({"sts": SCORES["sts"] | {"spearman": {"dev": 70.0, "own": 60.0}}})
    )
    export.export(arguments(run, tmp_path / "out", scores=str(tmp_path / "scores.json")))
    (index,) = header_of(tmp_path / "out")["model-index"]
    names = [one["dataset"]["name"] for one in index["results"]]
    assert names == ["own", "dev.tsv (dev)"]


def test_card_without_a_run_or_a_licence_claims_neither(tmp_path):
    exported.export(tiny_model(1), tmp_path / "out")
    assert not {"license", "base_model", "language"} & header_of(tmp_path / "out").keys()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "## Training" not in text and "## Scores" not in text and "JTCSE" not in text
    assert "Not stated" in text


def published_folder(folder: Path, title: str, name_or_path: str, code: str = "") -> Path:
    """A local copy of a published model, with its title, code and config."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n\n# {title}\n\n# Use\n{code}\n")
    (folder / "config.json").write_text(json.dumps({"_name_or_path": name_or_path}))
    return folder


def test_base_models_and_texts_are_found_through_workdirs_that_are_there(tmp_path):
    towers = [tmp_path / name for name in ("a", "b")]
    starts = ("bert-base-uncased", "org/name")
    for folder, start in zip(towers, starts, strict=True):
        folder.mkdir()
        workdir = write_trained_run(folder, tiny_model(1), towers=(start,))
        config = json.loads((workdir / "train_config.json").read_text())
        config["data"]["source"] = f"hub:org/text_{folder.name}:train:text"
        (workdir / "train_config.json").write_text(json.dumps(config))
    exported.export(saved_model.load(towers[1] / "run"), towers[1] / "exported")
    here = (str(towers[0] / "run"), str(towers[1] / "exported"))
    gone = ("package:some/folder", "~/gone", "runs/gone")
    copies = (
        published_folder(tmp_path / "titled", "org/titled", "org/its-own-start"),
        published_folder(tmp_path / "owned", "owned", "", "Model('org/owned')"),
        published_folder(tmp_path / "unnamed", "My model of today", "org/in-config"),
        published_folder(tmp_path / "unknown", "My model of today", str(tmp_path)),
    )
    local = (*here, *map(str, copies))
    workdir = write_trained_run(tmp_path, tiny_model(2), towers=(*local, *gone))
    config = json.loads((workdir / "train_config.json").read_text()) | {"workdir": "runs/this"}
    (workdir / "train_config.json").write_text(json.dumps(config))
    card = read_card(saved_model.load(workdir))
    assert card.base_models == [
        "bert-base-uncased",
        "org/in-config",
        "org/name",
        "org/owned",
        "org/titled",
    ]
    assert card.datasets == ["org/text_a", "org/text_b"]
    shortened = [
        "run",
        "exported",
        "titled",
        "owned",
        "unnamed",
        "unknown",
        "package:some/folder",
        "gone",
        "runs/gone",
    ]
    assert card.train_config["model"]["towers"] == shortened


@pytest.mark.parametrize(
    "content",
    [
        *("{}", "[]", "{", '{"sts": 3}', '{"sts": {"spearman": {"STS12": "high"}}}'),
        '{"sts": {"spearman": {"STS12": 80.0}}, "members": [3]}',
        *('{"models": []}', '{"models": [3]}', '{"models": [{}]}'),
    ],
)
def test_scores_of_another_form_are_refused(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(UserError, match=str(path)):
        export.export(arguments("none", tmp_path / "out", scores=str(path)))


@pytest.mark.parametrize("content", [{"colour": "red"}, {"scores": 3}, {"step": "4"}])
def test_card_of_another_version_is_named(tmp_path, content):
    exported.export(tiny_model(1), tmp_path / "out")
    (tmp_path / "out" / "jtcse_card.json").write_text(json.dumps(content))
    said = f"out/jtcse_card.json is of another version .{next(iter(content))}"
    with pytest.raises(UserError, match=said):
        export.export(arguments(tmp_path / "out", tmp_path / "again"))


def code_of(folder: Path) -> dict[str, str]:
    """The card's programs, by what tells them apart, with the folder for its placeholder."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    kinds = ("SentenceEncoder", "AutoModel", "SumOfTowers", "SentenceTransformer(")
    named = {next(kind for kind in kinds if kind in block): block for block in blocks}
    assert len(named) == len(blocks)
    return {
        kind: block.replace("path/to/this/folder", str(folder)) for kind, block in named.items()
    }


def run_code(block: str) -> dict:
    """The names that a program of the card leaves behind, given our sentences for its own."""
    names = {}
    exec(re.sub(r"sentences = \[.*?\]", f"sentences = {SENTENCES!r}", block), names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "num_towers", "pooling", "normalize"),
    [
        (tiny_model, 1, "mean", True),
        (roberta_model, 1, "cls", False),
        (roberta_model, 2, "cls", True),
        (tiny_model, 3, "mean", False),
    ],
)
def test_programs_of_the_card_give_our_vectors(tmp_path, make, num_towers, pooling, normalize):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    model = make(num_towers, pooling=pooling)
    workdir = write_run(tmp_path / "run", model, {1: None})
    options = {"normalize": normalize, "prompts": ("query=the cat ",)}
    export.export(arguments(workdir, tmp_path / "out", **options))
    encoder = SentenceEncoder.load(workdir)
    raw = encoder.encode(SENTENCES)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    code = code_of(tmp_path / "out")
    assert ("SumOfTowers" in code) == (num_towers > 1)
    for kind, block in code.items():
        names = run_code(block)
        theirs = names["model"] if kind in ("SumOfTowers", "SentenceTransformer(") else None
        expected = raw / lengths if normalize else raw
        np.testing.assert_allclose(names["vectors"], expected, atol=1e-5, err_msg=kind)
        if theirs:
            behind = theirs.encode(SENTENCES, prompt_name="query", normalize_embeddings=True)
            ours = encoder.encode([f"the cat {sentence}" for sentence in SENTENCES])
            ours /= np.linalg.norm(ours, axis=1, keepdims=True)
            np.testing.assert_allclose(behind, ours, atol=1e-5, err_msg=kind)
            assert theirs.max_seq_length == model.serving_length
            assert theirs.get_embedding_dimension() == 16
