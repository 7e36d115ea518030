"""The suite `diagnostics`: the geometry of sentence vectors and the layers' use of [CLS]."""

from dataclasses import dataclass
from typing import Any

from jtcse_jax.evaluation.development import Development
from jtcse_jax.evaluation.diagnostics import diagnose_embeddings, embed_pairs
from jtcse_jax.evaluation.inspection import diagnose
from jtcse_jax.evaluation.scored_model import Model
from jtcse_jax.evaluation.suite import Options, Suite, fingerprint, pair_content


@dataclass(frozen=True, kw_only=True)
class DiagnosticsOptions(Options):
    """Options of the suite."""

    dev: str | None = None
    """Pairs for the diagnostics: an STS-B folder, a file as for --sts, or `builtin`, the default of
    --suite diagnostics."""


class Diagnostics:
    """Diagnostics: how the vectors are spread, and how the layers treat [CLS]."""

    def __init__(self, dev: str, seed: int):
        """Reads the pairs. Errors as `Development`."""
        self.pairs = Development(dev).pairs
        self.name = "the built-in English pairs" if dev == "builtin" else dev
        self.data = fingerprint(dev, [pair_content(self.pairs)])
        self.seed = seed

    def score(self, model: Model) -> dict[str, Any]:
        """As `diagnose`, with the pairs in the protocol; for a foreign encoder the embeddings."""
        embedded = embed_pairs(model.encode, self.pairs)
        if model.members:
            result = diagnose(model.members, embedded, seed=self.seed)
        else:
            embeddings = diagnose_embeddings(embedded)
            result = {"protocol": embeddings.pop("protocol"), "embeddings": embeddings}
        return result | {"protocol": f"{result['protocol']}; pairs: {self.name}"}


def _headline(result: dict[str, Any]) -> dict[str, float]:
    """Figures of the embeddings that fit into a line."""
    names = ("uniformity", "alignment", "effective_rank", "anisotropy", "length_correlation")
    return {name: result["embeddings"][name] for name in names}


DIAGNOSTICS = Suite(
    name="diagnostics",
    options=DiagnosticsOptions,
    data="dev",
    default="builtin",
    make=lambda pairs, options: Diagnostics(pairs, options.seed),
    digits=3,
    headline=_headline,
    required="embeddings",
    tables=lambda results: [],  # the report has a section for each model instead
)
