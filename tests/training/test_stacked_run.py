"""A run whose layers are stacked, as on a GPU, in some of its parts."""

import dataclasses
from pathlib import Path

import jax
import pytest
from runs import largest_difference, saved_params, tiny_config

from jtcse_jax.store.workdir import METRICS
from jtcse_jax.training import train_step
from jtcse_jax.training.metrics import read_jsonl
from jtcse_jax.training.trainer import train


@pytest.mark.slow
def test_layers_may_be_stacked_in_one_part_of_a_run_and_single_in_another(
    finished, tmp_path, monkeypatch
):
    config = tiny_config(tmp_path)
    for last, stacked in ((4, True), (6, True), (10, False)):
        with monkeypatch.context() as patch:
            patch.setattr(train_step, "stacks_layers", lambda mesh, stacked=stacked: stacked)
            train(dataclasses.replace(config, max_steps=last), devices=jax.devices()[:1])
    assert largest_difference(saved_params(config.workdir), saved_params(finished.workdir)) < 1e-4
    one, two = (
        {
            line["step"]: line["dev_spearman"]
            for line in read_jsonl(Path(each.workdir) / METRICS)
            if "dev_spearman" in line
        }
        for each in (config, finished)
    )
    assert one == pytest.approx(two | {6: one[6]}, abs=1e-4)
