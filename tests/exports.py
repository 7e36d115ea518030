"""What a finished run exports: its scores, its options and its header."""

import dataclasses
from pathlib import Path

import huggingface_hub
import jax
from runs import tiny_config
from tiny_models import write_run
from tokenizers.pre_tokenizers import ByteLevel
from transformers import RobertaTokenizer

from jtcse_jax import export
from jtcse_jax.architecture import Architecture
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.config_file import to_json
from jtcse_jax.models.towers import Bank
from jtcse_jax.store.saved_model import SavedModel

SCORES = {
    "model": "/home/someone/secret/run, step 4",
    "members": [{"model": "/home/someone/secret/run, step 4", "max_len": 64}],
    "sts": {
        "protocol": "Spearman over all pairs",
        "spearman": {"STS12": 71.5, "STS-B": 80.25, "average": 75.88},
    },
}
ALL_OPTIONS = {
    "normalize": True,
    "prompts": ("query=the cat ", "empty=a=b"),
    "license": "apache-2.0",
    "language": ("en",),
    "push": None,
}


def roberta_model(num_towers: int = 2, *, pooling: str = "cls") -> SavedModel:
    """As `tiny_model`, with RoBERTa's positions and a tokenizer of single bytes."""
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    entries = {entry: number for number, entry in enumerate((*special, *ByteLevel.alphabet()))}
    shape = Architecture(
        family="roberta",
        vocab_size=len(entries),
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        max_positions=40,
        type_vocab_size=1,
        pad_token_id=1,
    )
    bank = Bank(shape, num_towers, pooling=pooling)
    params = jax.tree.map(lambda leaf: 5 * leaf, bank.init(num_towers))
    return SavedModel(bank, params, RobertaTokenizer(vocab=entries, merges=[]), 24, "tiny")


def write_trained_run(folder: Path, model: SavedModel, towers=("scratch", "scratch")) -> Path:
    """A workdir with its config; its best step is 4."""
    workdir = write_run(folder / "run", model, {2: 0.3, 4: 0.7, 6: 0.5})
    config = tiny_config(folder)
    objective = ObjectiveConfig(name="jtcse" if len(towers) > 1 else "simcse")
    changed = dataclasses.replace(config.model, towers=towers)
    config = dataclasses.replace(config, model=changed, objective=objective)
    (workdir / "train_config.json").write_text(to_json(config))
    return workdir


def arguments(model, output, **fields) -> export.Arguments:
    return export.Arguments(model=str(model), output=str(output), **fields)


def header_of(folder: Path) -> dict:
    card = huggingface_hub.ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    return card.data.to_dict()
