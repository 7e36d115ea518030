"""The config of a pipeline: the configs of its stages, and what they have in common.

A file `configs/pipeline_*.py` binds the name `config` to a `Pipeline`.
"""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from jtcse_jax.architecture import check_fields
from jtcse_jax.config import Config
from jtcse_jax.errors import UserError

# Folders in a pipeline's workdir beside those of the stages, so no stage may have these names.
MODEL = "model"  # the exported model
SUPERSEDED = "superseded"  # stages and models of earlier settings


@dataclass(frozen=True)
class Pipeline:
    """Trains sentence encoders in stages, evaluates each and exports one."""

    workdir: str = "runs/pipeline"
    """Folder that holds one folder per stage and the exported `model`. A second start resumes."""
    stages: dict[str, Config] = field(default_factory=dict)
    """Training runs by name, in order. In model.towers and objective.teacher, the name of an
    earlier stage (or NAME#K, its tower K) is the model that it trained; a teacher may be a sum of
    stages (`tower_a#0 + tower_b`). The `workdir` of a stage is not used."""
    source: Annotated[str, tyro.conf.arg(aliases=("--input",))] = ""
    """Text of every stage that has no data.source."""
    columns: tuple[str, ...] = ()
    """Columns of `source` if it is a table, as in data.columns."""
    dev: str | None = None
    """Development set of every stage that has no data.dev, except mlm. A stage with `dev = ""` is
    not scored in training, and its last step is its model."""
    sts: str | None = None
    """Folder of the seven STS tasks; every stage except mlm is scored on them."""
    seed: int = 0
    """Number of the repetition; 1000 times this number is added to the seed of every stage."""
    cache_dir: str | None = None
    """Folder for tokenised text, for every stage."""
    export: str | None = None
    """The stage whose model is exported, or NAME#K, its tower K; by default the last stage."""
    from_stage: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Train this stage and all later ones again; their old folders are moved to `superseded/`. If
    it is interrupted, the same command resumes until all stages are finished."""

    @property
    def deterministic(self) -> bool:
        """Whether a stage is deterministic; then all are: it is a setting of the process."""
        return any(config.deterministic for config in self.stages.values())

    def __post_init__(self):
        check_fields("", self)
        for name in self.stages:
            if not name.isidentifier() or name in (MODEL, SUPERSEDED):
                raise UserError(f"stages: {name!r} cannot name a folder here: use another word.")
        if self.export is not None and self.export.partition("#")[0] not in self.stages:
            raise UserError(
                f"--export {self.export}: choose one of the stages {', '.join(self.stages)}, or a "
                "tower of one, such as NAME#0."
            )
        if self.from_stage is not None and self.from_stage not in self.stages:
            raise UserError(
                f"--from {self.from_stage}: choose one of the stages {', '.join(self.stages)}."
            )
