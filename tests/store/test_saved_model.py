"""Saved banks: what is written is what is read, and by other libraries too."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import flip_bit, largest_file
from runs import largest_difference
from safetensors.numpy import load_file, save_file
from tiny_models import shifted, some_sentences, tiny_model, write_run

from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.store import manifest, saved_model
from jtcse_jax.store.exported import export
from jtcse_jax.store.hf_tokenizer import save_tokenizer
from jtcse_jax.store.workdir import CHECKPOINTS, DESCRIPTION, TOKENIZER

SENTENCES = some_sentences(12)


@pytest.fixture(scope="module")
def twin():
    return tiny_model(2)


@pytest.fixture(scope="module")
def single():
    return tiny_model(1, pooling="mean", serving_length=20)


@pytest.fixture(scope="module")
def run(twin, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), twin, {2: 0.3, 4: 0.7, 6: 0.5, 7: None})


@pytest.fixture(scope="module")
def exported(twin, single, tmp_path_factory):
    """Exported folders by number of towers."""
    folder = tmp_path_factory.mktemp("exported")
    for count, model in ((1, single), (2, twin)):
        export(model, folder / str(count))
    return {count: folder / str(count) for count in (1, 2)}


def test_workdir_gives_the_best_step_or_the_asked_one(run, twin):
    best = saved_model.load(run)
    assert best.source == f"{run}, step 4 (best by dev score)"
    assert largest_difference(best.params, shifted(twin, 4)) == 0
    assert (best.folder, best.step) == (run, 4)
    asked = saved_model.load(run, step=7)
    assert "step 7 (requested)" in asked.source and asked.step == 7
    assert largest_difference(asked.params, shifted(twin, 7)) == 0
    assert (best.bank, best.serving_length) == (twin.bank, twin.serving_length)
    assert best.tokenizer.get_vocab() == twin.tokenizer.get_vocab()


@pytest.fixture
def own_run(run, tmp_path, caplog):
    """A copy of the run for a test to damage."""
    caplog.set_level(logging.WARNING, logger="jtcse_jax")
    return Path(shutil.copytree(run, tmp_path / "own"))


def test_a_damaged_best_step_gives_way_to_the_next_best(own_run, twin, caplog):
    """Until none is left; a reader moves nothing, and an asked step is never another one."""
    steps = own_run / CHECKPOINTS
    for damaged, step, words in [
        (4, 6, "best undamaged by dev score"),
        (6, 2, "best undamaged by dev score"),
        (2, 7, "newest undamaged, no dev score"),
    ]:
        flip_bit(largest_file(steps / str(damaged)))
        caplog.clear()
        model = saved_model.load(own_run)
        assert (model.step, model.source) == (step, f"{own_run}, step {step} ({words})")
        assert largest_difference(model.params, shifted(twin, step)) == 0
        said = [record.getMessage() for record in caplog.records]
        assert f"checkpoint {steps / str(damaged)} is damaged and skipped, left there" in said[-1]
        with pytest.raises(UserError, match=f"step {damaged} .*: choose another step, or none"):
            saved_model.load(own_run, step=damaged)
    flip_bit(largest_file(steps / "7"))
    before = sorted(own_run.rglob("*"))
    with pytest.raises(UserError, match=f"^no good checkpoint in {steps}: all are damaged: [^.]*$"):
        saved_model.load(own_run)
    assert sorted(own_run.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"{}"])
def test_a_step_whose_score_is_lost_is_not_passed_over_in_silence(own_run, caplog, content):
    (own_run / CHECKPOINTS / "4" / manifest.NAME).write_bytes(content)
    assert saved_model.load(own_run).source.endswith("step 6 (best undamaged by dev score)")
    (line,) = (record.getMessage() for record in caplog.records)
    assert "4 is damaged and skipped, left there: manifest.json is altered" in line


def test_a_damaged_newest_step_gives_way_where_none_has_a_score(single, tmp_path, caplog):
    workdir = write_run(tmp_path / "run", single, {1: None, 3: None, 5: None})
    flip_bit(largest_file(workdir / CHECKPOINTS / "5"))
    assert saved_model.load(workdir).source.endswith("step 3 (newest undamaged, no dev score)")
    assert "5 is damaged and skipped, left there" in caplog.text


@pytest.mark.parametrize("size", [0, 1000])
def test_full_disk_under_a_tokenizer_is_an_os_error(single, tmp_path, largest_files, size):
    """Which is what its callers make a sentence of; the tokenizers library raises its own."""
    with largest_files(size), pytest.raises(OSError, match="File too large"):
        save_tokenizer(single.tokenizer, tmp_path / TOKENIZER)


def test_workdir_without_scores_gives_the_newest_step(single, tmp_path):
    model = saved_model.load(write_run(tmp_path / "run", single, {1: None, 3: None}))
    assert "step 3 (newest, no dev score)" in model.source
    assert largest_difference(model.params, shifted(single, 3)) == 0
    assert model.bank.pooling == "mean" and model.serving_length == 20


@pytest.mark.parametrize("count", [1, 2])
def test_exported_folder_gives_identical_vectors(exported, twin, single, count):
    model = {1: single, 2: twin}[count]
    loaded = saved_model.load(exported[count])
    assert (loaded.bank, loaded.serving_length) == (model.bank, model.serving_length)
    np.testing.assert_array_equal(
        SentenceEncoder.of(loaded).encode(SENTENCES), SentenceEncoder.of(model).encode(SENTENCES)
    )


def as_sentence_transformers(folder: Path, exported: Path, pooling: dict, modules=()) -> Path:
    """A folder as sentence-transformers writes it."""
    shutil.copytree(exported, folder)
    paths = {"Transformer": "", "Pooling": "1_Pooling"} | {name: f"2_{name}" for name in modules}
    listed = [
        {"type": f"sentence_transformers.models.{name}", "path": path}
        for name, path in paths.items()
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 11}))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


OLD = {"word_embedding_dimension": 16, "pooling_mode_max_tokens": False}


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (OLD | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        (OLD | {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"embedding_dimension": 16, "pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": True}, "mean"),
    ],
)
def test_sentence_transformers_folder_says_pooling_and_length(exported, tmp_path, config, pooling):
    folder = as_sentence_transformers(tmp_path / "st", exported[1], config, ("Normalize",))
    model = saved_model.load(folder)
    assert (model.bank.pooling, model.serving_length) == (pooling, 11)
    assert saved_model.load(folder, pooling="cls", max_len=9).serving_length == 9
    assert saved_model.load(folder, pooling="cls").bank.pooling == "cls"


@pytest.mark.parametrize(("said", "taken"), [(17, 17), (10**30, 200), (None, 200)])
def test_new_sentence_transformers_folder_says_length_with_its_tokenizer(
    exported, tmp_path, said, taken
):
    folder = as_sentence_transformers(tmp_path / "st", exported[1], {"pooling_mode": "cls"})
    (folder / "sentence_bert_config.json").write_text('{"transformer_task": "feature-extraction"}')
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    text = json.dumps(tokenizer | {"model_max_length": said})
    (folder / "tokenizer_config.json").write_text(text)
    assert saved_model.load(folder).serving_length == taken


@pytest.mark.parametrize(("limit", "taken"), [(17, 17), (512, 200), (10**30, 200), (0, 200)])
def test_length_of_a_plain_folder_is_its_tokenizers_within_the_positions(
    exported, tmp_path, limit, taken
):
    folder = Path(shutil.copytree(exported[2] / "tower_1", tmp_path / "plain"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"model_max_length": limit})
    )
    assert saved_model.load(folder, pooling="cls").serving_length == taken


def test_older_exported_folder_keeps_its_length(exported, tmp_path):
    """Its jtcse.json has the length under another name; its tokenizer has the same."""
    folder = Path(shutil.copytree(exported[2], tmp_path / "older"))
    description = json.loads((folder / DESCRIPTION).read_text())
    description["max_len"] = description.pop("serving_length")
    (folder / DESCRIPTION).write_text(json.dumps(description))
    assert saved_model.load(folder).serving_length == 16


@pytest.mark.parametrize("length", ["16", 0, 16.0, True])
def test_serving_length_that_is_no_whole_number_is_named(exported, tmp_path, length):
    folder = Path(shutil.copytree(exported[2], tmp_path / "odd"))
    description = json.loads((folder / DESCRIPTION).read_text())
    description["serving_length"] = length
    (folder / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"odd: serving_length = "):
        saved_model.load(folder)


def test_poolers_that_are_drawn_differ_by_seed_and_by_tower(exported, tmp_path):
    folder = tmp_path / "no_pooler"
    shutil.copytree(exported[2], folder)
    for tower in ("tower_0", "tower_1"):
        tensors = load_file(exported[2] / "tower_0" / "model.safetensors")
        kept = {name: leaf for name, leaf in tensors.items() if not name.startswith("pooler.")}
        save_file(kept, folder / tower / "model.safetensors")

    def poolers(**seed):
        return np.asarray(saved_model.load(folder, **seed).params["pooler"]["kernel"])

    first = poolers()
    assert np.abs(first[0] - first[1]).max() > 0.01
    np.testing.assert_array_equal(first, poolers(seed=0))
    assert np.abs(poolers(seed=2) - first).max(axis=(1, 2)).min() > 0.01


def test_pooling_is_never_guessed(exported):
    with pytest.raises(UserError, match="--pooling cls or --pooling mean"):
        saved_model.load(exported[2] / "tower_0")
    with pytest.raises(UserError, match="pooling = 'sum': choose one of cls, mean"):
        saved_model.load(exported[2] / "tower_0", pooling="sum")


def test_step_needs_a_workdir_that_has_it(exported, run):
    with pytest.raises(UserError, match="--step 3 needs a workdir"):
        saved_model.load(exported[1], step=3)
    with pytest.raises(UserError, match="step 3"):
        saved_model.load(run, step=3)


def test_sentences_longer_than_the_positions_are_refused(exported, run):
    for folder in (exported[1], run):
        with pytest.raises(UserError, match="max_len = 201: choose from 1 to 200"):
            saved_model.load(folder, max_len=201)
    assert saved_model.load(exported[1], max_len=200).serving_length == 200


@pytest.mark.parametrize("content", ['{"pooling": "cls"', "[1]", "\xff"])
def test_damaged_description_is_named(exported, tmp_path, content):
    folder = tmp_path / "damaged"
    shutil.copytree(exported[2], folder)
    (folder / DESCRIPTION).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="damaged/jtcse.json is not valid JSON"):
        saved_model.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda description: description.pop("num_towers"), "num_towers"),
        (lambda description: description.pop("architecture"), "architecture"),
        (lambda description: description["architecture"].update(heads=2), "heads"),
    ],
)
def test_incomplete_description_of_a_workdir_is_named(run, tmp_path, change, message):
    folder = tmp_path / "run"
    (folder / CHECKPOINTS).mkdir(parents=True)
    description = json.loads((run / DESCRIPTION).read_text())
    change(description)
    (folder / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(UserError, match=f"jtcse.json: incomplete .*{message}"):
        saved_model.load(folder)


def test_workdir_without_a_checkpoint_is_refused(twin, tmp_path):
    folder = write_run(tmp_path / "run", twin, {})
    with pytest.raises(UserError, match="no checkpoint yet; train first"):
        saved_model.load(folder)


def test_tower_that_is_missing_is_named(exported, tmp_path):
    folder = tmp_path / "exported"
    shutil.copytree(exported[2], folder)
    (folder / "tower_1" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="tower_1: no model.safetensors"):
        saved_model.load(folder)


@pytest.mark.slow
def test_folder_saved_by_sentence_transformers_gives_its_vectors(exported, tmp_path):
    models = pytest.importorskip(
        "sentence_transformers.models", reason="sentence-transformers is not installed"
    )
    from sentence_transformers import SentenceTransformer

    for mode in ("cls", "mean"):
        transformer = models.Transformer(str(exported[1]), max_seq_length=20)
        theirs = SentenceTransformer(
            modules=[transformer, models.Pooling(16, pooling_mode=mode)], device="cpu"
        )
        theirs.save(str(tmp_path / mode))
        ours = SentenceEncoder.load(tmp_path / mode)
        assert ours.banks[0].bank.pooling == mode
        np.testing.assert_allclose(ours.encode(SENTENCES), theirs.encode(SENTENCES), atol=2e-5)
        assert ours.banks[0].serving_length == 20


def test_a_pipelines_workdir_names_its_model(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match=f"a pipeline's workdir; its model is {tmp_path}/model"):
        saved_model.load(tmp_path)
