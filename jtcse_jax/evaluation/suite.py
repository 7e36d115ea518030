"""What a suite of `evaluate` is, and what the suites share; `suites.py` lists them."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from jtcse_jax.evaluation.score_table import Table
from jtcse_jax.evaluation.scored_model import Model
from jtcse_jax.evaluation.sts import Pairs

logger = logging.getLogger(__name__)

# A model's name, and what `evaluate` writes for it under the name of one suite.
Scored = tuple[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that several suites read."""

    seed: int = 0
    """Seed of the random folds, sentences, dropout views and bootstrap samples."""


class Scorer(Protocol):
    """A suite with its data, which it has read once."""

    data: dict[str, str]
    """The name of the scored data, and its hash."""

    def score(self, model: Model) -> dict[str, Any]:
        """The scores of a model with their "protocol", ready for JSON."""
        ...


class Differences(NamedTuple):
    """How a suite compares methods, pair by pair."""

    measure: Callable[[Any, Sequence[str], int], dict[str, Any]]
    """(scorer, method of each scored model, seed) -> how much higher the scores are than those of
    the first method, by method and task, ready for JSON."""
    table: Callable[[str, dict[str, Any]], Table]
    """(first method, what `measure` returned) -> its table in the report."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """All that `evaluate` and the report know of a suite."""

    name: str
    """The name for `--suite`, and the key of its scores in a result."""
    options: type[Options]
    """Its options on the command line of `evaluate`, with their help."""
    data: str
    """The option that names its data; the suite is scored if it is given."""
    default: str | None = None
    """The data of `--suite NAME` without that option, if it has any."""
    requested: Callable[[Any], bool] = lambda options: False
    """Whether another of its options asks for the suite, with its default data."""
    make: Callable[[str, Any], Scorer]
    """(data, options) -> the scorer; UserError if the data cannot be read."""
    digits: int = 2
    """Decimals in a table."""
    headline: Callable[[dict[str, Any]], dict[str, float]]
    """The numbers of a result that fit into a row, by name."""
    required: str
    """A key of every result; its value is a dictionary."""
    tables: Callable[[Sequence[Scored]], list[Table]]
    """Tables of the report, from the results of one or more models."""
    differences: Differences | None = None
    """How methods are compared. A result has one place for this, so only one suite of it can."""

    def find_data(self, options: Options, *, named: bool = False) -> str | None:
        """The data to score, or None without any; `named` suites have their default data."""
        asked = named or self.requested(options)
        return getattr(options, self.data) or (self.default if asked else None)


def fingerprint(name: str, parts: Iterable[Iterable[str]]) -> dict[str, str]:
    """The name of the scored data, and a hash of its content (sha256, hex)."""
    digest = hashlib.sha256()
    for part in parts:
        for text in part:
            digest.update(text.encode() + b"\0")
    return {"name": str(name), "sha256": digest.hexdigest()}


def pair_content(pairs: Pairs) -> Iterator[str]:
    """All that scores of pairs depend on."""
    yield from (*pairs.first, *pairs.second, *map(str, pairs.gold.tolist()))


def warn_missing(missing: Mapping[str, str]) -> None:
    """Warns about tasks that are skipped, by task and reason."""
    for task, reason in missing.items():
        logger.warning("%s is skipped and not part of the average: %s.", task, reason)
