"""The suites of `evaluate`: each reads its data once and then scores any number of models."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.comparison import Cosines, sts_differences
from jtcse_jax.evaluation.development import Development
from jtcse_jax.evaluation.diagnostics import diagnose_embeddings, embed_pairs
from jtcse_jax.evaluation.foreign import PREFIX, ForeignEncoder
from jtcse_jax.evaluation.inspection import diagnose
from jtcse_jax.evaluation.sts import PROTOCOL, Pairs, StsScore, load_sts, score_sts, sts_cosines
from jtcse_jax.evaluation.transfer import TransferTask, evaluate_transfer, load_transfer
from jtcse_jax.evaluation.zero_shot import evaluate_mteb
from jtcse_jax.evaluation.zero_shot_tasks import choose, load_tasks
from jtcse_jax.store import ensemble
from jtcse_jax.store.ensemble import Member
from jtcse_jax.user_path import user_path

logger = logging.getLogger(__name__)


class Model(NamedTuple):
    """An encoder of this project or of sentence-transformers."""

    encoder: SentenceEncoder | ForeignEncoder
    members: tuple[Member, ...]  #: empty for a foreign encoder
    description: dict[str, Any]  #: the conditions of its scores, for JSON

    def encode(self, sentences: list[str]) -> np.ndarray:
        """[n, D] float32, raw or scaled to length 1, as the model's folder defines."""
        return self.encoder.encode(sentences)

    @property
    def cut_sentences(self) -> int | None:
        """Number of sentences cut at the serving length; None for a foreign encoder."""
        return None if isinstance(self.encoder, ForeignEncoder) else self.encoder.truncated


def load_model(name: str, compute_dtype: str = "float32", **options: Any) -> Model:
    """Loads the model `name`; `options` are those of `ensemble.load_members` and `prompted`.

    A foreign model takes no options and has its own dtype; for others `compute_dtype` is the dtype
    of matrix products. Raises the errors of these functions and of `ForeignEncoder`.
    """
    if name.startswith(PREFIX):
        given = [key for key, value in options.items() if value is not None]
        if given:
            raise UserError(f"{name}: its folder decides {given[0]}: leave this option out.")
        foreign = ForeignEncoder(name)
        description = {"model": name, "fingerprint": foreign.fingerprint()}
        return Model(foreign, (), description | {"members": [foreign.describe()]})
    prompts = [options.pop(key, None) for key in ("prompt", "prompt_name")]
    members = ensemble.computed_in(compute_dtype, ensemble.load_members(name, **options))
    members = ensemble.prompted(members, *prompts)
    encoder = SentenceEncoder.of(members)
    assert encoder.members is not None  # `of` has set them
    description = {
        "model": ensemble.source(members),
        "fingerprint": ensemble.fingerprint(members),
        "normalize": encoder.normalizes,
        "members": [
            {
                "weight": weight,
                "model": model.source,
                "towers": model.bank.num_towers,
                "pooling": model.bank.pooling,
                "serving_length": model.serving_length,
                "prompt": model.serving.prompt(),
                "compute_dtype": model.bank.compute_dtype,
            }
            for weight, model in members
        ],
    }
    return Model(encoder, encoder.members, description)


class Sts:
    """The seven STS tasks, or the user's own pairs."""

    digits = 2  #: decimals in a table

    def __init__(self, path: str):
        """Reads the tasks. Errors as `load_sts`; missing tasks are only warned about."""
        self.tasks, self.missing = load_sts(path)
        self.data = _data(path, [_content(task.pairs) for task in self.tasks])
        self._scored: list[Cosines] = []  # one entry per model, in order
        _warn_missing(self.missing)

    def score(self, model: Model) -> dict[str, Any]:
        """Correlations by task and by subset, ready for JSON."""
        cosines = sts_cosines(model.encode, self.tasks)
        self._scored.append(cosines)
        scores = score_sts(cosines, self.tasks)
        subsets = {name: _columns(score.subsets) for name, score in scores.items() if score.subsets}
        result = {"protocol": PROTOCOL, **_columns(scores), "subsets": subsets}
        undefined = [score.undefined for score in scores.values() if score.undefined]
        return result | {"missing": self.missing, "undefined": undefined}

    @staticmethod
    def headline(result: dict[str, Any]) -> dict[str, float]:
        """Spearman by task."""
        return result["spearman"]

    def differences(self, methods: Sequence[str], seed: int) -> dict[str, Any]:
        """How much higher Spearman is than the first method's, by method and task, ready for JSON.

        `methods` has the method of each scored model, in order.
        """
        seeds: dict[str, list[Cosines]] = {}
        for method, cosines in zip(methods, self._scored, strict=True):
            seeds.setdefault(method, []).append(cosines)
        gold = {task.name: task.pairs.gold for task in self.tasks}
        reference = methods[0]
        return {
            method: {
                task: {part: round(100 * value, 2) for part, value in found._asdict().items()}
                for task, found in sts_differences(
                    cosines, seeds[reference], gold, seed=seed
                ).items()
            }
            for method, cosines in seeds.items()
            if method != reference
        }


class Transfer:
    """SentEval's transfer tasks."""

    digits = 2

    def __init__(self, folder: str, seed: int):
        """Reads the tasks. Errors as `load_transfer`; missing tasks are only warned about."""
        self.tasks, self.missing = load_transfer(folder)
        self.data = _data(folder, [_labelled(task) for task in self.tasks])
        self.seed = seed
        _warn_missing(self.missing)

    def score(self, model: Model) -> dict[str, Any]:
        """As `evaluate_transfer`."""
        result = evaluate_transfer(model.encode, self.tasks, seed=self.seed)
        return result | {"missing": self.missing}

    @staticmethod
    def headline(result: dict[str, Any]) -> dict[str, float]:
        """Accuracy by task."""
        return result["accuracy"]


class Diagnostics:
    """Diagnostics: how the vectors are spread, and how the layers treat [CLS]."""

    digits = 3

    def __init__(self, dev: str, seed: int):
        """Reads the pairs. Errors as `Development`."""
        self.pairs = Development(dev).pairs
        self.data = _data(dev, [_content(self.pairs)])
        self.seed = seed

    def score(self, model: Model) -> dict[str, Any]:
        """As `diagnose`; for a foreign encoder only the embeddings."""
        if model.members:
            embedded = embed_pairs(model.encode, self.pairs)
            return diagnose(model.members, embedded, seed=self.seed)
        embeddings = diagnose_embeddings(embed_pairs(model.encode, self.pairs))
        return {"protocol": embeddings.pop("protocol"), "embeddings": embeddings}

    @staticmethod
    def headline(result: dict[str, Any]) -> dict[str, float]:
        """Figures of the embeddings that fit into a line."""
        names = ("uniformity", "alignment", "effective_rank", "anisotropy", "length_correlation")
        return {name: result["embeddings"][name] for name in names}


class Mteb:
    """Zero-shot tasks, scored by MTEB."""

    digits = 2

    def __init__(self, tasks_file: str, names: Sequence[str], folder: str):
        """Reads the list; `folder` gets a folder per model, which keeps its finished tasks.

        Raises UserError if the list is wrong.
        """
        self.tasks_file = user_path(tasks_file)
        tasks = choose(load_tasks(self.tasks_file), names)
        self.data = _data(self.tasks_file.name, [map(str, tasks)])
        self.names, self.folder = names, user_path(folder)

    def score(self, model: Model) -> dict[str, Any]:
        """As `evaluate_mteb`."""
        fingerprint = model.description["fingerprint"]
        return evaluate_mteb(
            model.encoder.model if isinstance(model.encoder, ForeignEncoder) else model.encoder,
            self.tasks_file,
            self.folder / fingerprint[:16],
            fingerprint=fingerprint,
            names=self.names,
            report=logger.warning,
        )

    @staticmethod
    def headline(result: dict[str, Any]) -> dict[str, float]:
        """Averages by category, each with its number of tasks, and scores outside the list."""
        found = {}
        for group in ("paper", "ours"):
            for name, category in result.get(group, {}).items():
                if category["scored"]:
                    whose = "" if group == "paper" else "_(ours)"
                    tasks = f"_{category['scored']} of {category['of']}"
                    found[name + whose + tasks] = category["average"]
        return found | result["other"]


def _data(name: str, parts: Iterable[Iterable[str]]) -> dict[str, str]:
    """The name of the scored data, and a hash of its content (sha256, hex)."""
    digest = hashlib.sha256()
    for part in parts:
        for text in part:
            digest.update(text.encode() + b"\0")
    return {"name": str(name), "sha256": digest.hexdigest()}


def _content(pairs: Pairs) -> Iterator[str]:
    yield from (*pairs.first, *pairs.second, *map(str, pairs.gold.tolist()))


def _labelled(task: TransferTask) -> Iterator[str]:
    for split in task.splits:
        yield from (*split.first, *(split.second or ()), *map(str, split.labels.tolist()))


def _columns(scores: Mapping[str, StsScore]) -> dict[str, dict[str, float]]:
    return {
        "spearman": {name: round(100 * score.spearman, 2) for name, score in scores.items()},
        "pearson": {name: round(100 * score.pearson, 2) for name, score in scores.items()},
        "pairs": {name: score.pairs for name, score in scores.items()},
    }


def _warn_missing(missing: Mapping[str, str]) -> None:
    for task, reason in missing.items():
        logger.warning("%s is skipped and not part of the average: %s.", task, reason)
