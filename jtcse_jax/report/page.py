"""A report as one HTML page."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jtcse_jax.evaluation.diagnostics_suite import DIAGNOSTICS
from jtcse_jax.report.models import Look
from jtcse_jax.report.runs import Run
from jtcse_jax.report.sections import overview, result_section, run_section
from jtcse_jax.report.tables import (
    config_differences,
    embedding_table,
    last_part,
    score_tables,
    summary_table,
    verdict,
)

TEMPLATE = "page.html.jinja"


def render(
    title: str,
    runs: Sequence[Run],
    looks: Mapping[str, Look],
    results: Sequence[dict[str, Any]],
    differences: Mapping[str, Any],
    environment: Mapping[str, str],
) -> str:
    """The page, self-contained.

    Args:
      title: title of the page.
      runs: in the order of the page.
      looks: inspected models, by name of their run; without one, the run's notes have the reason.
      results: results of `evaluate`, one per model.
      differences: those of `evaluate --compare`, by the reference model.
      environment: versions and device with which the page was made.
    """
    from jinja2 import Environment, StrictUndefined

    diagnosed = [one for one in results if "protocol" in one.get(DIAGNOSTICS.name, {})]
    embeddings = [
        (name, last_part(look.examples), look.diagnostics["embeddings"])
        for name, look in looks.items()
    ]
    for one in diagnosed:
        found = one[DIAGNOSTICS.name]
        pairs = last_part(found.get("data", {}).get("name", ""))
        embeddings.append((one["model"], pairs, found["embeddings"]))
    environment_of = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = resources.files("jtcse_jax.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment_of.from_string(template).render(
        title=title,
        verdict=verdict(runs),
        summary=summary_table(runs),
        overview=overview(runs, looks) if len(runs) > 1 else None,
        scores=score_tables(runs, results, differences),
        embeddings=embedding_table(embeddings) if embeddings else None,
        sections=[run_section(run, looks.get(run.name)) for run in runs]
        + [result_section(one) for one in diagnosed],
        differences=config_differences(runs) if len(runs) > 1 else None,
        environment=environment,
        conditions=_conditions(results),
    )


def _conditions(results: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The conditions of each model's scores: hash, towers, seed and environment."""
    found = []
    for one in results:
        members = "; ".join(
            f"{member.get('towers')} tower(s), {member.get('pooling')} pooling, "
            f"serving length {member.get('serving_length', member.get('max_len'))}, "
            f"{member.get('compute_dtype', 'float32')}"
            for member in one.get("members", ())
        )
        environment = one.get("environment", {})
        parts = (
            members,
            "vectors scaled to length 1" * one.get("normalize", False),
            f"vectors of {one['dimensions']}" if "dimensions" in one else "",
            f"sha256 {one.get('fingerprint', '')[:12]}",
            f"seed {one.get('seed')}",
            ", ".join(f"{name} {text}" for name, text in environment.items()),
        )
        found.append((one["model"], "; ".join(filter(None, parts))))
    return found
