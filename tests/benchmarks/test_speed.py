"""What keeps a run fast, without a clock: shapes compiled, what is said of speed."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import tiny_config
from transformers import PreTrainedTokenizerFast

from jtcse_jax.architecture import Architecture
from jtcse_jax.config import Config, DataConfig, ObjectiveConfig, OptimizerConfig
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.tokens import TokenCache, tokenize
from jtcse_jax.data.vocabulary import train_tokenizer
from jtcse_jax.models.towers import Bank
from jtcse_jax.runtime.compilation import keep_compiled
from jtcse_jax.store.workdir import METRICS
from jtcse_jax.training.metrics import read_jsonl
from jtcse_jax.training.optimizer import make_optimizer
from jtcse_jax.training.train_step import init_state, make_train_step
from jtcse_jax.training.trainer import train

TINY = Architecture(vocab_size=200, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32)
BATCH, LENGTH, SLOTS = 16, 32, 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> TokenCache:
    """Sentences of two to forty words."""
    folder = tmp_path_factory.mktemp("text")
    random = np.random.default_rng(0)
    words = np.array(["river", "old", "sees", "a", "garden", "house", "of", "night"])
    lengths = random.geometric(0.12, 400).clip(2, 40)
    lines = [" ".join(random.choice(words, length)) for length in lengths]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    source = open_source(str(folder / "text.txt"))
    tokenizer: PreTrainedTokenizerFast = train_tokenizer(source, 200, lowercase=True)
    return tokenize(source, tokenizer, LENGTH // 2, folder / "cache", progress=False)


def test_two_epochs_compile_two_steps_at_most(cache):
    bank = Bank(TINY, 2, dropout=0.1, attention_dropout=0.1)
    optimizer = make_optimizer(OptimizerConfig(), 100)
    state = jax.device_put(init_state({"towers": bank.init(0)}, optimizer))
    step = make_train_step(bank, ObjectiveConfig(name="tncse"), optimizer)
    data = DataConfig(batch_size=BATCH, max_len=LENGTH // 2, row_length=LENGTH, slots=SLOTS)
    batches = PackedBatches(cache, data, seed=0)
    rows = set()
    for number in range(2 * batches.steps_per_epoch):
        batch = batches[number]
        rows.add(len(batch.tokens))
        state, _ = step(state, batch, jax.random.key(0))
    assert len(rows) == 2, "the text no longer asks for both shapes"
    assert step.jitted._cache_size() == 2


def without_dev(folder: Path, **fields) -> Config:
    config = tiny_config(folder, **fields)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, dev=None))


def test_log_tells_speed_and_profile_traces(tmp_path, capsys):
    config = without_dev(tmp_path, profile=True, peak_tflops=1e-6)
    train(config, devices=jax.devices()[:1])
    lines = read_jsonl(Path(config.workdir) / METRICS)
    last = [line for line in lines if "loss" in line][-1]
    # 8 sentences of some 9 tokens, twice.
    assert 10 < last["tokens_per_second"] / last["sentences_per_second"] < 30
    assert last["mfu"] > 0 and "flops" not in last and "tokens" not in last
    said = capsys.readouterr().out
    assert re.search(r"step 10 .* sentences/s  [\d,]+ tokens/s  MFU [\d.]+%  ETA", said)
    assert list((Path(config.workdir) / "profile").rglob("*.xplane.pb"))


def test_profile_of_one_step_is_no_error(tmp_path):
    config = without_dev(tmp_path, profile=True, max_steps=1)
    train(config, devices=jax.devices()[:1])
    assert list((Path(config.workdir) / "profile").rglob("*.xplane.pb"))


def test_compiled_programs_are_kept_where_nobody_says_otherwise():
    before = jax.config.jax_compilation_cache_dir
    try:
        keep_compiled()
        assert jax.config.jax_compilation_cache_dir == before  # the tests' own, of the environment
        jax.config.update("jax_compilation_cache_dir", None)
        keep_compiled()
        assert jax.config.jax_compilation_cache_dir.endswith("/.cache/jtcse_jax/compiled")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
