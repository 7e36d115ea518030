"""`python -m jtcse_jax.pipeline --config FILE [--any.field VALUE ...]`: trains all stages."""

from jtcse_jax.pipeline_config import Pipeline
from jtcse_jax.runtime.command import training_command
from jtcse_jax.runtime.distributed import is_primary
from jtcse_jax.training.stage_scores import print_table, verdict
from jtcse_jax.training.stages import exported_name, run, stage_configs


def train_stages(pipeline: Pipeline) -> None:
    """Trains the stages and prints their scores; errors as `stages.run`."""
    rows = run(pipeline)
    if is_primary():
        print_table(rows)
        by_stage = {row["stage"]: row for row in rows}
        for line in verdict(stage_configs(pipeline), by_stage, exported_name(pipeline)):
            print(line)


main = training_command("pipeline", Pipeline, train_stages)

if __name__ == "__main__":
    main()
