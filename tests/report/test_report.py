"""The report: what the page shows against the files it was made of."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from runs import tiny_config

from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.config_file import to_json
from jtcse_jax.evaluation.development import Development, keep_cosines
from jtcse_jax.report import __main__ as report
from jtcse_jax.report.models import Look, Neighbours
from jtcse_jax.report.page import render
from jtcse_jax.report.runs import Run, find_runs, read_log
from jtcse_jax.report.tables import config_differences, summary_table, verdict

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

VOID = {"meta", "link", "line", "path", "use", "image", "br", "rect"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
STS = {"STS12": 70.123, "STS-B": 80.5, "average": 75.3115}


class Page(HTMLParser):
    """What a reader of the page meets: tables, pictures' descriptions, links; tags are balanced."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def row(self, *start: str) -> list[str]:
        """The one row that starts so."""
        (found,) = [row for row in self.rows if row[: len(start)] == list(start)]
        return found

    def told(self) -> list[str]:
        """The descriptions of the pictures."""
        return [found["aria-label"] for _, found in self.tags if found.get("role") == "img"]


def write_run(folder, name="run", *, dev=True, sts=None, extra="", **fields):
    """A workdir as a run of 40 steps leaves it, but for its weights."""
    workdir = folder / name
    workdir.mkdir(parents=True)
    config = dataclasses.replace(tiny_config(folder), workdir=str(workdir), **fields)
    (workdir / "train_config.json").write_text(to_json(config))
    (workdir / "environment.jsonl").write_text('{"step": 0, "jax": "8.8"}\n{"step": 4, "ja')
    lines = []
    for step in range(0, 50, 10):
        score = 0.7 + 0.1 * np.sin(step)
        if step:
            terms = {"loss": 1 / step, "nce": 0.5 / step, "sentences_per_second": 2.0 + step}
            lines.append({"step": step, **terms, "grad_norm": 1.0, "uniformity": -step / 20})
        if dev:
            interval = {"dev_low": score - 0.01, "dev_high": score + 0.02}
            lines.append({"step": step, "dev_spearman": score, **interval, "dev_anisotropy": 0.3})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text + extra)
    if sts:
        (workdir / "finished.json").write_text(json.dumps({"sts": sts}))
    return workdir


def result(name, **suites):
    """As `evaluate --output` writes it."""
    conditions = {"fingerprint": "abcdef" * 8, "seed": 3, "environment": {"jax": "9.9"}}
    return {"model": name, "members": [{"towers": 2}], **conditions, **suites}


def page_of(command, *arguments, models=False) -> tuple[Page, str]:
    """The page that the command writes."""
    output = arguments[0].parent / "report.html"
    options = [] if models else ["--no-models"]
    command(report, *arguments, *options, "--output", output)
    return Page(output.read_text()), output.read_text()


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The arguments, page and text of a report on a run and on another model's scores."""
    folder = tmp_path_factory.mktemp("reported")
    run = write_run(folder, sts=STS)
    scores = result(
        "other",
        sts={"protocol": "How", "spearman": {"STS12": 71.0, "STS-B": 79.25, "average": 75.13}},
        transfer={
            "protocol": "Frozen",
            "accuracy": {"CR": 88.5, "MRPC": 70.25, "average": 79.38},
            "f1": {"MRPC": 81.75},
            "missing": {"SUBJ": "no such folder"},
        },
        mteb={
            "protocol": "Theirs",
            "paper": {"classification": {"average": 55.5, "scored": 1, "of": 45, "scores": {}}},
            "other": {"Banking77": 80.01},
            "failed": {"Emotion": "no network"},
        },
        diagnostics={"error": "too few pairs"},
    )
    differences = {"other": {"STS12": {"mean": 0.88, "low": -0.5, "high": 2.0}}}
    file = folder / "scores.json"
    scores["method"] = "first"
    file.write_text(json.dumps({"models": [scores], "differences": differences}))
    output = str(folder / "report.html")
    arguments = report.Arguments(
        workdirs=(str(run),), output=output, scores=(str(file),), models=False
    )
    report.report(arguments)
    text = (folder / "report.html").read_text()
    return arguments, Page(text), text


def test_a_page_has_the_numbers_of_the_logs_and_scores(reported):
    _, page, text = reported
    best = max(range(10, 50, 10), key=np.sin)
    low, dev, high = (f"{100 * (0.7 + 0.1 * np.sin(best) + add):.2f}" for add in (-0.01, 0, 0.02))
    # 40 steps of 8 sentences at the median speed of 27 a second.
    assert page.row("run", dev) == [
        *("run", dev, f"{low} to {high}", "jtcse", "2 x scratch", "40", str(best)),
        *("27", f"{40 * 8 / 27 / 60:.1f} min"),
    ]
    gain = f"{100 * 0.1 * np.sin(best):+.2f}"
    assert f"run has the best dev score, {dev}; compared with its start: {gain}." in page.text
    assert page.row("run", "70.12") == ["run", "70.12", "80.50", "75.31"]
    assert page.row("other", "71.00") == ["other", "71.00", "79.25", "75.13"]
    assert page.row("model", "CR") == ["model", "CR", "MRPC", "MRPC F1", "average"]
    assert page.row("other", "88.50") == ["other", "88.50", "70.25", "81.75", "79.38"]
    assert page.row("other", "55.50 (1 of 45)") and page.row("Banking77", "80.01")
    assert page.row("other", "+0.88 [-0.50, +2.00]") and "minus that of first (" in text
    assert page.row("other", "diagnostics")[2] == "too few pairs"
    assert "SUBJ is missing: no such folder" in text
    assert "Emotion failed: no network" in text and "How." in text and "Frozen." in text
    assert "trained from step 0 with</dt><dd>jax 8.8</dd>" in text
    assert "sha256 abcdefabcdef; seed 3; jax 9.9" in text
    # STS12 and the differences are the other's, STS-B and the average are the run's.
    best_cells = re.findall(r'<td class="best">([^<]*)</td>', text)
    assert best_cells == ["80.50", "75.31", "71.00"]
    told = " ".join(page.told())
    assert "nce: 0.05 at step 10, 0.0125 at step 40" in told
    assert f"{100 * (0.7 + 0.1 * np.sin(40)):.2f} at step 40" in told
    assert "uniformity" in text and "Anisotropy, dev set" in text


def test_a_page_needs_nothing_but_itself_and_describes_its_pictures(reported):
    _, page, text = reported
    links = [
        value
        for _, found in page.tags
        for name, value in found.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action")
    ]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert "script" not in {tag for tag, _ in page.tags} and "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    anchors = {found["id"] for _, found in page.tags if "id" in found}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    drawn = [tag for tag, found in page.tags if tag == "svg" and found.get("aria-hidden") is None]
    assert len(page.told()) == len(drawn) >= 5 and all(page.told())
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    assert "#0a0b0c" not in text and "currentColor" in text


def test_every_picture_links_to_its_numbers(reported):
    _, page, _ = reported
    links = [found for tag, found in page.tags if tag == "a" and "download" in found]
    assert len(links) == len(page.told())
    (loss,) = [found["href"] for found in links if found["download"] == "loss-and-its-terms.csv"]
    rows = unquote(loss.partition(",")[2]).splitlines()
    assert [row for row in rows if row.startswith("nce")] == [
        f"nce,{step},{0.5 / step:.7g}" for step in range(10, 50, 10)
    ]
    (dev,) = [found["href"] for found in links if found["download"] == "dev-score.csv"]
    scores = [f"{100 * (0.7 + 0.1 * np.sin(step)):.7g}" for step in range(0, 50, 10)]
    assert [row.split(",")[2] for row in unquote(dev.partition(",")[2]).splitlines()[1:]] == scores


def test_the_same_files_give_the_same_page(reported):
    arguments, _, text = reported
    report.report(arguments)
    assert Path(arguments.output).read_text() == text


def test_stages_of_a_pipeline_stand_in_the_order_of_their_training(tmp_path):
    folder = tmp_path / "pipeline"
    tower, twin, student = (folder / name for name in ("the_tower", "a_twin", "student"))
    model = tiny_config(tmp_path).model
    write_run(folder, twin.name, model=dataclasses.replace(model, towers=(f"{tower}#0",) * 2))
    distill = ObjectiveConfig(name="distill", teacher=str(twin))
    write_run(folder, student.name, objective=distill)
    write_run(folder, tower.name)
    write_run(folder / "superseded" / "0", tower.name)
    runs = find_runs([folder])
    assert [run.name for run in runs] == ["the_tower", "a_twin", "student"]
    assert [[row[0], row[3]] for row in summary_table(runs).rows][1:] == [
        ["a_twin", "jtcse"],
        ["student", "distill"],
    ]
    found = config_differences(runs)
    assert found.columns == ("field", "the_tower", "a_twin", "student")
    assert ["objective.name", "jtcse", "jtcse", "distill"] in found.rows
    changed = {"model.towers", "objective.name", "objective.teacher"}
    assert {row[0] for row in found.rows} == changed


def test_the_verdict_compares_the_two_best_runs_of_one_dev_set(tmp_path):
    folders = [write_run(tmp_path, name) for name in ("worse", "better", "elsewhere")]
    data = dataclasses.replace(tiny_config(tmp_path).data, dev="another.tsv")
    config = dataclasses.replace(tiny_config(tmp_path), data=data)
    (folders[2] / "train_config.json").write_text(to_json(config))
    runs = find_runs(folders)
    for run, score in zip(runs, (0.70, 0.71, 0.60), strict=True):
        run.scored = [{"step": 20, "dev_spearman": score}]
    assert verdict(runs) == "better has the best dev score, 71.00; compared with worse: +1.00."
    gold = Development(tiny_config(tmp_path).data.dev).pairs.gold
    for folder in folders:  # equal cosines
        keep_cosines(folder, 20, gold)
    found = verdict(runs)
    assert "compared with worse: +0.00 [+0.00, +0.00], within noise." in found
    assert verdict(runs[1:]) == "better has the best dev score, 71.00."  # the start was not scored
    runs[1].scored = [{"step": 0, "dev_spearman": 0.71}]
    assert "which is that of its start" in verdict(runs[1:])


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / one, "run") for one in "ab"]
    assert [run.name for run in find_runs(runs)] == ["a/run", "b/run"]


def test_what_a_run_does_not_have_is_left_out_with_its_reason(tmp_path, command):
    data = dataclasses.replace(tiny_config(tmp_path).data, dev=None)
    mlm = {
        "objective": ObjectiveConfig(name="mlm"),
        "data": dataclasses.replace(data, pairs="none"),
    }
    one = write_run(tmp_path, "language", dev=False, **mlm)
    two = write_run(tmp_path, "blind", dev=False, data=data, extra='{"step": 50, "lo')
    published = tmp_path / "published"
    published.mkdir()
    (published / "config.json").write_text("{}")
    page, text = page_of(command, one, two, published, models=True)
    assert "no dev scores: a language model" in text
    assert "no dev scores: data.dev was not given" in text
    assert "the last line of metrics.jsonl was cut short" in text
    assert "a model without a training log" in text
    # Neither has weights: the page says so, and goes on.
    assert "its sentence vectors are not inspected" in text
    assert text.count("the model is not inspected: ") == 2
    assert not [told for told in page.told() if "Dev score" in told]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"step": 5, "loss": 1', "not a line of metrics"),
        ("[1]", "no step in it"),
        ('{"step": 5, "loss": NaN}', "loss = nan is not a finite number"),
        ('{"step": 5, "loss": "high"}', "loss = 'high' is not a finite number"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, refused, line, said):
    path = write_run(tmp_path) / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(f"{whole}\n{line}\n")
    number = whole.count("\n") + 2
    error = refused(report, path.parent, "--output", tmp_path / "report.html")
    assert f"metrics.jsonl:{number}: " in error and said in error
    # The last line without an end is what a kill leaves.
    path.write_text(whole + '{"step": 5')
    assert read_log(path) == ([json.loads(one) for one in whole.splitlines()], True)


def test_bad_input_is_refused_in_a_sentence(tmp_path, refused, monkeypatch):
    run = write_run(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "started").mkdir()
    shutil.copy(run / "train_config.json", tmp_path / "started")
    (tmp_path / "wrong.json").write_text('{"model": 3}')
    output = ("--output", tmp_path / "report.html")
    assert "absent: no such folder" in refused(report, tmp_path / "absent", *output)
    assert "not the workdir of a run" in refused(report, tmp_path / "empty", *output)
    assert "has logged nothing yet" in refused(report, tmp_path / "started", *output)
    assert "--output" in refused(report, run, "--output", tmp_path / "no" / "report.html")
    assert "a folder; give the name" in refused(report, run, "--output", tmp_path)
    (tmp_path / "empty.json").write_text('{"model": "x", "sts": {"protocol": "p"}}')
    for name, said in (
        ("wrong.json", "not a file of scores"),
        ("empty.json", "not a file of scores"),
        ("absent.json", "no such file"),
    ):
        assert said in refused(report, run, *output, "--scores", tmp_path / name)
    data = dataclasses.replace(tiny_config(tmp_path).data, dev=str(tmp_path / "gone.tsv"))
    moved = write_run(tmp_path, "moved", data=data)
    assert "gone.tsv" in refused(report, run, *output, "--dev", tmp_path / "gone.tsv")
    report.report(report.Arguments(workdirs=(str(moved),), output=str(tmp_path / "moved.html")))
    assert "name other pairs, --dev" in (tmp_path / "moved.html").read_text()
    for package in ("matplotlib", "jinja2"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            assert f"pip install {package}" in refused(report, run, *output)
    assert not (tmp_path / "report.html").exists()


def some_look(sentence: str) -> Look:
    """Two towers of two layers and two heads, made up."""
    attention = {key: [[[0.1, 0.2], [0.3, 0.4]]] * 2 for key in ("cls", "sep", "punctuation")}
    stream = {"e_cls": [[1.0, 1.25, 1.5], [1.0, 0.75, 0.5]], "attention": attention}
    shares = {"cls": 0.05, "sep": 0.06, "punctuation": 0.07}
    member = {"sentences": 9, "uniform_attention": shares, "plain": stream, "crossed": stream}
    diagnostics = {
        "embeddings": {"protocol": "raw", "uniformity": -1.23456, "spectrum": [0.5, 0.25]},
        "members": [member],
    }
    gold, cosines = np.arange(6.0), np.linspace(0, 1, 6)
    neighbours = [Neighbours(sentence, [(0.98765, sentence + "!")])]
    return Look("model " + sentence, "pairs", cosines, gold, neighbours, diagnostics)


def test_a_page_shows_layers_and_neighbours_and_takes_no_text_for_markup(tmp_path):
    evil = '<script>alert("x")</script> & </svg>'
    (other,) = find_runs([write_run(tmp_path)])
    runs = [Run(evil, tmp_path, notes=[evil]), other]
    text = render(evil, runs, {evil: some_look(evil)}, [], {}, {"os": evil})
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert text.count("&lt;script&gt;") > 8
    assert page.row("os") == ["os", evil]
    assert page.row(evil, "pairs")[2] == "-1.235"
    assert "<span>0.988</span>" in text and evil + "!" in page.text
    told = " ".join(page.told())
    assert "tower 1, crossed: 1 at layer 0, 0.5 at layer 2" in told
    assert f"E_CLS, mean over towers. {evil}: 1 at layer 0, 1 at layer 2" in told
    assert "Throughput. run: 12 at step 10, 42 at step 40" in told
    assert len([one for one in page.told() if "largest 0.40 in layer 2, head 2" in one]) == 12
    assert "[CLS] 0.05, [SEP] 0.06, punctuation 0.07" in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_finds_no_fault_and_nothing_runs_over_the_edge(tmp_path, command):
    _, text = page_of(command, write_run(tmp_path, "a_rather_long_name_of_a_run" * 3))
    # The page in a frame as wide as a phone; the frame's own script measures it.
    frame = tmp_path / "frame.html"
    escaped = text.replace("&", "&amp;").replace('"', "&quot;")
    frame.write_text(
        f'<iframe srcdoc="{escaped}" style="width:390px;height:900px;border:0"></iframe>'
        "<script>onload = () => { const page = frames[0].document.documentElement;"
        "document.title = `fits: ${page.scrollWidth <= page.clientWidth}` }</script>"
    )
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        + [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "<title>fits: true</title>" in done.stdout
    assert "CONSOLE" not in done.stderr
