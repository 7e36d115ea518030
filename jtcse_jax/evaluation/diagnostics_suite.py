"""The suite `diagnostics`: the geometry of sentence vectors and the layers' use of [CLS]."""

import logging
from dataclasses import dataclass
from typing import Any

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation import development
from jtcse_jax.evaluation.diagnostics import diagnose_embeddings
from jtcse_jax.evaluation.examples import Examples, scored_pairs, text_sentences
from jtcse_jax.evaluation.inspection import diagnose
from jtcse_jax.evaluation.scored_model import Model
from jtcse_jax.evaluation.sts import Pairs
from jtcse_jax.evaluation.suite import Options, Suite, fingerprint, pair_content

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DiagnosticsOptions(Options):
    """Options of the suite."""

    dev: str | None = None
    """Pairs for the diagnostics: an STS-B folder, a file as for --sts, or `builtin`, English pairs,
    the default of --suite diagnostics."""
    text: str | None = None
    """A text in place of --dev: diagnostics of its first 512 different sentences, without the
    figures that need pairs."""
    text_columns: tuple[str, ...] = ()
    """Column of the sentences if --text is a table."""


class Diagnostics:
    """Diagnostics: how the vectors are spread, and how the layers treat [CLS]."""

    def __init__(self, examples: Examples, seed: int):
        self.examples, self.seed = examples, seed
        content = examples.content
        parts = pair_content(content) if isinstance(content, Pairs) else content
        self.data = fingerprint(examples.name, [parts])

    def score(self, model: Model) -> dict[str, Any]:
        """As `diagnose`, with the examples in the protocol; for a foreign encoder the embeddings.

        Warns of a collapse.
        """
        embedded = self.examples.embed(model.encode)
        if model.members:
            result = diagnose(model.members, embedded, seed=self.seed)
        else:
            embeddings = diagnose_embeddings(embedded)
            result = {"protocol": embeddings.pop("protocol"), "embeddings": embeddings}
        cosine = result["embeddings"]["anisotropy"]
        if cosine > development.COLLAPSED:
            logger.warning(
                "%s has collapsed: different sentences have a mean cosine of %.3f.",
                *(model.description["model"], cosine),
            )
        name = self.examples.name
        which = "the built-in English pairs" if name == "builtin" else str(self.examples)
        return result | {"protocol": f"{result['protocol']}; {which}"}


def _make(dev: str, options: DiagnosticsOptions) -> Diagnostics:
    if options.text_columns and options.text is None:
        raise UserError("--text-columns belongs to --text: give both, or neither.")
    if options.text is None:
        return Diagnostics(scored_pairs(dev), options.seed)
    if options.dev:
        raise UserError("--text and --dev: the diagnostics take one of them.")
    return Diagnostics(text_sentences(options.text, options.text_columns), options.seed)


def _headline(result: dict[str, Any]) -> dict[str, float]:
    """Figures of the embeddings that fit into a line."""
    names = ("uniformity", "alignment", "effective_rank", "anisotropy", "length_correlation")
    return {name: result["embeddings"][name] for name in names if name in result["embeddings"]}


DIAGNOSTICS = Suite(
    name="diagnostics",
    options=DiagnosticsOptions,
    data="dev",
    default="builtin",
    requested=lambda options: options.text is not None,
    make=_make,
    digits=3,
    headline=_headline,
    required="embeddings",
    tables=lambda results: [],  # the report has a section for each model instead
)
