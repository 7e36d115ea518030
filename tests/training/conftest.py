"""What the tests of a pipeline's stages share."""

import json
from pathlib import Path

import pytest

from jtcse_jax.errors import UserError
from jtcse_jax.store.card import Card
from jtcse_jax.training import stages
from jtcse_jax.training.run_record import record


class Trainer:
    """Stands in for `train`: leaves a log and a config, and fails where it is told to."""

    def __init__(self):
        self.trained, self.fails = [], None

    def __call__(self, config):
        workdir = Path(config.workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        record(workdir, config, {})
        if workdir.name == self.fails:
            raise UserError("the disk is full: free space.")
        self.trained.append(workdir.name)
        lines = [{"step": 2, "loss": 1.0, "sentences_per_second": 4.0}]
        if config.data.dev:
            lines += [{"step": 0, "dev_spearman": 0.5}]
            lines += [{"step": step, "dev_spearman": 0.6} for step in (1, 2)]  # the later is taken
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (workdir / "metrics.jsonl").write_text(text)


@pytest.fixture
def trainer(monkeypatch):
    trainer = Trainer()
    monkeypatch.setattr(stages, "train", trainer)
    monkeypatch.setattr(stages.saved_model, "load", lambda folder: folder)
    monkeypatch.setattr(stages, "read_card", lambda model: Card())
    monkeypatch.setattr(
        stages.exported,
        "export",
        lambda model, folder, card: folder.mkdir() or trainer.trained.append("model"),
    )
    return trainer
