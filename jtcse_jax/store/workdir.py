"""Names of the files in a workdir of a run or a pipeline, for all who write or read them."""

# In the workdir of a run
CONFIG = "train_config.json"
CHECKPOINTS = "checkpoints"
DESCRIPTION = "jtcse.json"  # also in an exported folder: what its weights are
TOKENIZER = "tokenizer"
METRICS = "metrics.jsonl"

# In the workdir of a pipeline (`pipeline_config` has the names of its folders)
FROM = "from.txt"  # the stage that `--from` named, until its models have been moved away
EXPORTED = "exported.txt"  # the stage or tower that `model` holds
FINISHED = "finished.json"  # in a stage's folder: its row in the table
