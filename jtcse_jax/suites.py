"""What `evaluate` can score: a suite reads its data once and then scores any number of models."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jtcse_jax import ensemble
from jtcse_jax.encoder import SentenceEncoder
from jtcse_jax.ensemble import Member
from jtcse_jax.evaluation.comparison import Cosines, sts_differences
from jtcse_jax.evaluation.sts import PROTOCOL, Encode, StsScore, load_sts, score_sts, sts_cosines
from jtcse_jax.foreign import PREFIX, ForeignEncoder

logger = logging.getLogger(__name__)


class Model(NamedTuple):
    """An encoder of ours, or one of sentence-transformers."""

    encoder: SentenceEncoder | ForeignEncoder
    members: tuple[Member, ...]  #: none of a foreign encoder
    description: dict[str, Any]  #: what its scores depend on, for JSON

    @property
    def encode(self) -> Encode:
        """Sentences to raw vectors, [n, D] float32."""
        return self.encoder.encode


def load_model(name: str, **options: Any) -> Model:
    """The model `name`, with the options of `ensemble.load_members`, which a foreign one has not.

    Raises UserError as `ensemble.load_members` and `ForeignEncoder`.
    """
    if name.startswith(PREFIX):
        foreign = ForeignEncoder(name)
        return Model(foreign, (), _description(name, foreign.fingerprint(), [foreign.describe()]))
    members = ensemble.load_members(name, **options)
    described = [
        {
            "weight": weight,
            "model": model.source,
            "towers": model.bank.num_towers,
            "pooling": model.bank.pooling,
            "max_len": model.max_len,
        }
        for weight, model in members
    ]
    description = _description(ensemble.source(members), ensemble.fingerprint(members), described)
    return Model(SentenceEncoder.of(members), members, description)


class Sts:
    """The seven STS tasks, or pairs of the user's own."""

    def __init__(self, path: str):
        """Reads the tasks. Errors as `load_sts`; tasks that are missing are warned of."""
        self.tasks, self.missing = load_sts(path)
        self._scored: list[Cosines] = []  # one for each model, in their order
        _warn_missing(self.missing)

    def score(self, model: Model) -> dict[str, Any]:
        """Correlations by task and by subset, ready for JSON."""
        cosines = sts_cosines(model.encode, self.tasks)
        self._scored.append(cosines)
        scores = score_sts(cosines, self.tasks)
        subsets = {name: _columns(score.subsets) for name, score in scores.items() if score.subsets}
        result = {"protocol": PROTOCOL, **_columns(scores), "subsets": subsets}
        return result | {"missing": self.missing}

    def differences(self, methods: Sequence[str], seed: int) -> dict[str, Any]:
        """By method and task, how much higher Spearman is than the first method's, ready for JSON.

        `methods` holds the method of each model that was scored, in that order.
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


def _description(source: str, fingerprint: str, members: list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": source, "fingerprint": fingerprint, "members": members}


def _columns(scores: Mapping[str, StsScore]) -> dict[str, dict[str, float]]:
    return {
        "spearman": {name: round(100 * score.spearman, 2) for name, score in scores.items()},
        "pearson": {name: round(100 * score.pearson, 2) for name, score in scores.items()},
        "pairs": {name: score.pairs for name, score in scores.items()},
    }


def _warn_missing(missing: Mapping[str, str]) -> None:
    for task, reason in missing.items():
        logger.warning("%s is left out, and not in the average: %s.", task, reason)


SUITES = {"sts": Sts}
