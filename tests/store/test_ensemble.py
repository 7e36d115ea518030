"""Descriptions of ensembles: what they load, how they nest, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from runs import largest_difference
from tiny_models import tiny_model, write_run

from jtcse_jax.errors import UserError
from jtcse_jax.store import ensemble, exported, saved_model
from jtcse_jax.store.ensemble import Member, load_members


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`one` (mean), `two` (cls) and a workdir `run` with steps 2 and 3, in one folder."""
    folder = tmp_path_factory.mktemp("models")
    exported.export(tiny_model(1, pooling="mean", serving_length=20), folder / "one")
    exported.export(tiny_model(2), folder / "two")
    write_run(folder / "run", tiny_model(2), {2: 0.6, 3: 0.4})
    return folder


def describe(path, *members, **more):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"members": list(members), **more}))
    return path


def member(model, weight=1.0, **options):
    return {"model": str(model), "weight": weight, **options}


def test_anything_else_is_one_member_of_weight_one(folder):
    (only,) = load_members(folder / "run", step=3, pooling="mean", max_len=9)
    expected = saved_model.load(folder / "run", step=3, pooling="mean", max_len=9)
    assert only.weight == 1.0
    assert (only.model.bank, only.model.serving_length) == (expected.bank, 9)
    assert largest_difference(only.model.params, expected.params) == 0
    assert ensemble.source((only,)) == expected.source


def test_a_sum_of_names_is_the_ensemble_of_its_file(folder, tmp_path):
    inner = describe(folder / "inner.json", member("one", 4.0))
    described = describe(folder / "sum.json", member("two", 0.5), member("one", 4.0))
    summed = load_members(f"0.5 * {folder / 'two'} + {inner}")
    assert ensemble.fingerprint(summed) == ensemble.fingerprint(load_members(described))
    assert ensemble.source(summed).startswith("0.5 * ")
    shutil.copytree(folder / "one", tmp_path / "a + b")  # a folder of that name is that folder
    ((weight, _),) = load_members(tmp_path / "a + b")
    assert weight == 1.0
    assert ensemble.split_sum("2 * a#0 + b#1") == [(2.0, "a#0"), (1.0, "b#1")]


@pytest.mark.parametrize(
    "wrong", ["x * a + b", "a + ", "0 * a", "-1 * a + b", "nan * a", "1e7 * a"]
)
def test_a_sum_that_is_none_is_refused_by_its_term(wrong):
    with pytest.raises(UserError, match=r"WEIGHT \* MODEL"):
        load_members(wrong)


@pytest.mark.parametrize("given", ["mix", "mix/ensemble.json"])
def test_members_have_their_own_options(folder, tmp_path, monkeypatch, given):
    shutil.copytree(folder, tmp_path / "mix")
    describe(
        tmp_path / "mix" / "ensemble.json",
        member("one", 0.3, max_len=11),
        member(tmp_path / "mix" / "run", 0.7, step=3, pooling="mean", max_len=None),
    )
    one, run = load_members(tmp_path / given)
    assert (one.weight, run.weight) == (0.3, 0.7)
    assert (one.model.serving_length, run.model.serving_length) == (11, 16)
    assert (one.model.bank.pooling, run.model.bank.pooling) == ("mean", "mean")
    assert "step 3" in run.model.source
    said = ensemble.source((one, run))
    assert said == f"0.3 * {one.model.source} + 0.7 * {run.model.source}"


def test_paths_are_looked_for_beside_the_file_then_as_given(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    exported.export(tiny_model(1, serving_length=7), tmp_path / "two")
    path = describe(tmp_path / "mix.json", member("two"), member("one"))
    two, one = load_members(path)
    assert two.model.serving_length == 7  # the one beside the file, though the other exists too
    assert one.model.serving_length == 20


def test_nested_descriptions_are_flattened(folder, tmp_path):
    describe(tmp_path / "inner" / "ensemble.json", member("one", 0.5), member("leaf", 2))
    shutil.copytree(folder / "one", tmp_path / "inner" / "one")
    shutil.copytree(folder / "two", tmp_path / "two")
    exported.export(tiny_model(1, serving_length=5), tmp_path / "inner" / "leaf")
    # The same description twice is no cycle.
    path = describe(
        tmp_path / "outer.json", member("inner", 3), member("two"), member("inner", 0.1)
    )
    found = load_members(path)
    assert [each.weight for each in found] == pytest.approx([1.5, 6, 1, 0.05, 0.2])
    assert [each.model.serving_length for each in found] == [20, 5, 16, 20, 5]


def test_ensemble_that_contains_itself_is_refused(tmp_path):
    describe(tmp_path / "a.json", member("b"))
    describe(tmp_path / "b" / "ensemble.json", member("c.json"))
    describe(tmp_path / "b" / "c.json", member("ensemble.json"))
    with pytest.raises(UserError, match=r"b/ensemble\.json: this ensemble contains itself"):
        load_members(tmp_path / "a.json")


def test_an_ensemble_cannot_multiply_without_end(tmp_path, monkeypatch):
    """Eight files of eight members each would be 8^8 models."""
    loaded = []
    monkeypatch.setattr(ensemble.saved_model, "load", lambda name, **_: loaded.append(name))
    for level in range(8):
        describe(tmp_path / f"{level}.json", *[member(f"{level + 1}.json")] * 8)
    describe(tmp_path / "8.json", member("leaf"))
    with pytest.raises(UserError, match="more than 64 members"):
        load_members(tmp_path / "0.json")
    assert len(loaded) <= 2 * 64


def test_vectors_of_other_widths_are_refused(folder, tmp_path):
    wide = tiny_model(1)
    shape = dataclasses.replace(wide.bank.architecture, hidden_size=32)
    bank = dataclasses.replace(wide.bank, architecture=shape)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), bank.abstract())
    exported.export(dataclasses.replace(wide, bank=bank, params=params), tmp_path / "wide")
    shutil.copytree(folder / "one", tmp_path / "one")
    path = describe(tmp_path / "mix.json", member("one"), member("wide"))
    with pytest.raises(UserError) as error:
        load_members(path)
    assert f"{tmp_path / 'one'} has 16" in str(error.value)
    assert f"{tmp_path / 'wide'} 32" in str(error.value)


@pytest.mark.parametrize("option", [{"step": 1}, {"pooling": "cls"}, {"max_len": 8}])
def test_options_beside_an_ensemble_are_refused(folder, tmp_path, option):
    path = describe(tmp_path / "mix.json", member(folder / "one"))
    with pytest.raises(UserError, match="for each member"):
        load_members(path, **option)
    outer = describe(tmp_path / "outer.json", member("mix.json", **option))
    with pytest.raises(UserError, match=f"member 0: .*write {next(iter(option))} into its own"):
        load_members(outer)


WRONG = [
    ("{", "is not valid JSON"),
    ("[]", "a list instead of a dict"),
    ('{"members": []}', "an ensemble is"),
    ('{"members": {"model": "one", "weight": 1}}', "an ensemble is"),
    ('{"members": [{"model": "one", "weight": 1}], "scale": 2}', "an ensemble is"),
    ('{"members": ["one"]}', 'member 0: needs "model" and "weight"'),
    ('{"members": [{"model": "one"}]}', 'member 0: needs "model" and "weight"'),
    ('{"members": [{"model": "one", "weight": 1, "poling": "cls"}]}', "unknown field 'poling'"),
    ('{"members": [{"model": 3, "weight": 1}]}', "model = 3"),
    ('{"members": [{"model": "one", "weight": "1"}]}', "weight = '1'"),
    ('{"members": [{"model": "one", "weight": true}]}', "weight = True"),
    ('{"members": [{"model": "one", "weight": 0}]}', "weight = 0"),
    ('{"members": [{"model": "one", "weight": NaN}]}', "weight = nan"),
    ('{"members": [{"model": "one", "weight": 1%s}]}' % (400 * "0"), "weight = 1000.*, to 1e"),
    ('{"members": [{"model": "~no one/x", "weight": 1}]}', "~no one/x"),
    (
        '{"members": [{"model": "one", "weight": 1, "max_len": "9"}]}',
        "max_len = '9' is not of type int",
    ),
    ('{"members": [{"model": "one", "weight": 1, "pooling": "sum"}]}', "member 0: .*'sum'"),
    ('{"members": [{"model": "none.json", "weight": 1}]}', "none.json: no such file"),
    ('{"members": [{"model": "./none", "weight": 1}]}', "member 0: ./none does not exist"),
]


@pytest.mark.parametrize(("content", "said"), WRONG)
def test_wrong_description_is_one_sentence(folder, content, said):
    path = folder / "wrong.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as error:
        load_members(path)
    assert "\n" not in str(error.value)


def test_description_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_members(tmp_path / "none.json")


def test_fingerprint_tells_what_changes_the_vectors():
    model = tiny_model(2)
    touched = jax.tree.map(np.array, model.params)
    leaf = jax.tree.leaves(touched)[-1]
    leaf[..., -1] += 1e-6
    other = [
        Member(0.5, model),
        Member(1.0, dataclasses.replace(model, serving_length=15)),
        Member(1.0, dataclasses.replace(model, params=touched)),
        Member(
            1.0, dataclasses.replace(model, bank=dataclasses.replace(model.bank, pooling="mean"))
        ),
        *ensemble.computed_in("bfloat16", (Member(1.0, model),)),
    ]
    same = ensemble.fingerprint((Member(1.0, dataclasses.replace(model, source="elsewhere")),))
    assert same == ensemble.fingerprint((Member(1.0, model),))
    prints = {same, *(ensemble.fingerprint((each,)) for each in other)}
    assert len(prints) == 1 + len(other)
