"""`python -m jtcse_jax.pipeline --config FILE [--any.field VALUE ...]`: trains all stages."""

import logging

from jtcse_jax import config_file
from jtcse_jax.errors import one_line_errors
from jtcse_jax.pipeline_config import Pipeline
from jtcse_jax.runtime import distributed
from jtcse_jax.runtime.distributed import is_primary
from jtcse_jax.training.stage_scores import print_table, verdict
from jtcse_jax.training.stages import exported_name, run, stage_configs
from jtcse_jax.training.trainer import set_up_jax


@one_line_errors
def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    with distributed.said_once():
        pipeline = config_file.parse(Pipeline, "jtcse_jax.pipeline")
    set_up_jax(any(config.deterministic for config in pipeline.stages.values()))
    if is_primary():
        logging.getLogger("jtcse_jax").setLevel(logging.INFO)
    rows = run(pipeline)
    if is_primary():
        print_table(rows)
        by_stage = {row["stage"]: row for row in rows}
        for line in verdict(stage_configs(pipeline), by_stage, exported_name(pipeline)):
            print(line)


if __name__ == "__main__":
    main()
