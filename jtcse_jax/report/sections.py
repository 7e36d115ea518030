"""The sections of a report: the pictures and texts of each run and model, in order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jtcse_jax.evaluation.development import METRIC
from jtcse_jax.evaluation.diagnostics_suite import DIAGNOSTICS
from jtcse_jax.report.figures import Line, Picture, curves, heat_map, histograms
from jtcse_jax.report.models import Look, Neighbours
from jtcse_jax.report.runs import Run
from jtcse_jax.report.tables import config_texts, last_part
from jtcse_jax.store.card import of_this_run
from jtcse_jax.training.metrics import SPEEDS

NO_LOSS = {"step", "alignment", "uniformity", "accuracy", "grad_norm", *SPEEDS}
TRAINING = (
    "Means since the previous line of the log; axes are logarithmic if values are positive and "
    "span a wide range. The band is the dev score's 95 % bootstrap interval, the diamond the step "
    "that is used. Alignment: mean squared distance of unit vectors that belong together (two "
    "views of a sentence in a batch, pairs of high gold score in the dev set); uniformity: log of "
    "the mean Gaussian potential of different sentences. Lower is better for both."
)
SPECTRUM = "Spectrum: singular values of the centred unit vectors, over their sum. "
E_CLS = (
    "E_CLS: norm of the [CLS] state over the mean norm of the other tokens' states; layer 0 is "
    "the embeddings."
)
ATTENTION = (
    "Share of attention on [CLS], [SEP] and punctuation, averaged over the tokens of a sentence; "
    "the maps of a column share one scale. Attention spread evenly would give"
)
KEYS = {"cls": "[CLS]", "sep": "[SEP]", "punctuation": "punctuation"}


@dataclass(frozen=True)
class Group:
    """Pictures about one subject."""

    title: str
    text: str
    pictures: list[Picture] = field(default_factory=list)
    wide: bool = False  #: three side by side if there is room


@dataclass(frozen=True)
class Section:
    """The part of the page about one run or model."""

    name: str
    source: str
    notes: Sequence[str]
    groups: list[Group]
    neighbours: Sequence[Neighbours] = ()
    config: Mapping[str, str] = field(default_factory=dict)


def overview(runs: Sequence[Run], looks: Mapping[str, Look]) -> Group:
    """The curves of all runs, one picture per quantity."""
    dev, speed, ratios, spectra = [], [], [], []
    for color, run in enumerate(runs):
        if run.scored:
            dev.append(_dev_line(run, color, band=False))
        if any("sentences_per_second" in line for line in run.trained):
            speed.append(_line(run.name, run.trained, "sentences_per_second", color))
        if run.name in looks:
            found = looks[run.name].diagnostics
            first = found["members"][0]["plain"]["e_cls"]
            mean = [sum(layer) / len(layer) for layer in zip(*first, strict=True)]
            ratios.append(Line(run.name, range(len(mean)), mean, color))
            spectra.append(_spectrum_line(run.name, found["embeddings"]["spectrum"], color))
    pictures = []
    if dev:
        pictures.append(curves("Dev score", dev, y="Spearman × 100", values=".2f"))
    if speed:
        pictures.append(curves("Throughput", speed, y="sentences/s"))
    if ratios:
        pictures.append(curves("E_CLS, mean over towers", ratios, x="layer"))
    if spectra:
        pictures.append(_spectrum(spectra))
    return Group("All runs together", SPECTRUM if spectra else "", pictures)


def run_section(run: Run, look: Look | None) -> Section:
    """How a run trained, and its model's pictures if the model was inspected."""
    groups = [_training(run)]
    if look:
        groups += _insides(look.diagnostics, look)
    return Section(
        name=run.name,
        source=look.source if look else str(run.folder),
        notes=run.notes,
        groups=[group for group in groups if group.pictures],
        neighbours=look.neighbours if look else (),
        config=config_texts(of_this_run(run.config))
        | {f"trained from step {step} with": text for step, text in run.environments.items()},
    )


def result_section(result: dict[str, Any]) -> Section:
    """The diagnostics of a model in a result of `evaluate`."""
    found = result[DIAGNOSTICS.name]
    notes = [] if "members" in found else ["not a model of ours: its layers are not inspected"]
    groups = [group for group in _insides(found) if group.pictures]
    return Section(result["model"], "from --scores", notes, groups)


def _training(run: Run) -> Group:
    pictures = []
    names = dict.fromkeys(name for line in run.trained for name in line)
    terms = sorted((name for name in names if name not in NO_LOSS), key=lambda name: name != "loss")
    if run.trained:
        # All terms but the loss are dashed, because a single term equals the loss.
        lines = [
            _line(name, run.trained, name, color, dash=min(color, 1))
            for color, name in enumerate(terms)
        ]
        pictures.append(curves("Loss and its terms", lines, log=True))
    if run.scored:
        pictures.append(curves("Dev score", [_dev_line(run, 0)], y="Spearman × 100", values=".2f"))
    for name, title, log in (
        ("accuracy", "Share of hidden words guessed", False),
        ("grad_norm", "Norm of the gradient", True),
        ("sentences_per_second", "Throughput", False),
    ):
        if name in names:
            pictures.append(
                curves(title, [_line(name, run.trained, name)], y=name.replace("_", " "), log=log)
            )
    return Group("Training", TRAINING, [*pictures[:2], *_health(run, names), *pictures[2:]])


def _health(run: Run, names: Mapping[str, None]) -> list[Picture]:
    """Alignment and uniformity of batches and the dev set, and the log's other dev figures."""
    pictures = []
    for name in ("alignment", "uniformity"):
        lines = [_line("batches", run.trained, name, 0)] if name in names else []
        dev = [line for line in run.scored if f"dev_{name}" in line]
        if dev:
            lines.append(_line("dev set", dev, f"dev_{name}", 1))
        if lines:
            pictures.append(curves(name.capitalize(), lines))
    done = {METRIC, "dev_low", "dev_high", "dev_alignment", "dev_uniformity", "step"}
    for name in dict.fromkeys(name for line in run.scored for name in line if name not in done):
        lines = [line for line in run.scored if name in line]
        title = name.removeprefix("dev_").replace("_", " ").capitalize() + ", dev set"
        pictures.append(curves(title, [_line(name, lines, name)]))
    return pictures


def _insides(found: Mapping[str, Any], look: Look | None = None) -> list[Group]:
    """The spectrum and layers of a model, and its similarities if it was inspected here."""
    text, pictures = "", []
    if look and len(look.gold):
        pairs = f"{len(look.gold)} pairs ({last_part(look.examples)})"
        text = f"Cosines of {pairs} by gold score; all rows have one scale, a line marks the mean. "
        pictures.append(histograms("Similarity by gold score", look.cosines, look.gold))
    if "spectrum" in found["embeddings"]:
        pictures.append(_spectrum([_spectrum_line("", found["embeddings"]["spectrum"], 0)]))
        text += SPECTRUM
    members = found.get("members", ())
    maps = []
    for number, member in enumerate(members):
        of = f", member {number}" if len(members) > 1 else ""
        pictures.append(_e_cls("E_CLS" + of, member))
        maps.append(_attention("Attention by layer and head" + of, member))
    if members:
        text += f"{E_CLS} Mean over {members[0]['sentences']} sentences, without dropout."
    return [Group("Similarity, spectrum and [CLS]", text, pictures), *maps]


def _e_cls(title: str, member: Mapping[str, Any]) -> Picture:
    lines = [
        Line(_stream(member, tower, stream), range(len(ratios)), ratios, tower, dash)
        for dash, stream in enumerate(_streams(member))
        for tower, ratios in enumerate(member[stream]["e_cls"])
    ]
    return curves(title, lines, x="layer")


def _attention(title: str, member: Mapping[str, Any]) -> Group:
    """A row of heat maps for each tower and stream; the maps of a column share one scale."""
    towers = [(tower, stream) for stream in _streams(member) for tower in range(_towers(member))]
    masses = {
        key: [np.asarray(member[stream]["attention"][key][tower]) for tower, stream in towers]
        for key in KEYS
    }
    maps = [
        heat_map(
            ": ".join(filter(None, (f"To {name}", _stream(member, *towers[number])))),
            masses[key][number],
            largest=max(mass.max() for mass in masses[key]),
        )
        for number in range(len(towers))
        for key, name in KEYS.items()
    ]
    uniform = ", ".join(f"{KEYS[key]} {member['uniform_attention'][key]:.2f}" for key in KEYS)
    return Group(title, f"{ATTENTION} {uniform}.", maps, wide=True)


def _streams(member: Mapping[str, Any]) -> list[str]:
    return [name for name in ("plain", "crossed") if name in member]


def _towers(member: Mapping[str, Any]) -> int:
    return len(member["plain"]["e_cls"])


def _stream(member: Mapping[str, Any], tower: int, stream: str) -> str:
    return f"tower {tower}, {stream}" if _towers(member) > 1 else ""


def _line(
    label: str, lines: Sequence[Mapping[str, float]], name: str, color: int = 0, dash: int = 0
) -> Line:
    there = [line for line in lines if name in line]
    steps, values = ([line[key] for line in there] for key in ("step", name))
    return Line(label, steps, values, color, dash)


def _dev_line(run: Run, color: int, *, band: bool = True) -> Line:
    steps = [line["step"] for line in run.scored]
    whole = band and all("dev_low" in line and "dev_high" in line for line in run.scored)
    low, high = (
        [100 * line[name] for line in run.scored] if whole else None
        for name in ("dev_low", "dev_high")
    )
    scores = [100 * line[METRIC] for line in run.scored]
    mark = run.best["step"] if run.best else None
    return Line(run.name, steps, scores, color, low=low, high=high, mark=mark)


def _spectrum_line(label: str, values: Sequence[float], color: int) -> Line:
    return Line(label, range(1, len(values) + 1), values, color)


def _spectrum(lines: Sequence[Line]) -> Picture:
    return curves("Spectrum", lines, x="singular value", log=True)
