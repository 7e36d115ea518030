"""Folders of sentence-transformers give its own vectors, folder by folder and text by text."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import SHAPE, some_sentences, tiny_model

from jtcse_jax import encode, export
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.store import exported

package = pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is not installed"
)

TEXTS = [
    *("The Cat sees THE dog .", "the cat sees the dog .", "old RIVER night", "İstanbul ẞ ǅ"),
    *("", " ", "\t\n", "  the cat  ", "the\0cat", "\0", "\x01\x02\x7f", "\u200b\u200e\ufeff"),
    *("[MASK] [CLS] [SEP] [PAD]", "[cls]", "cafe\u0301 café", "ﬁ ① Ⅷ", "שלום עולם", "\u202ecat"),
    *("👩‍👩‍👧‍👦 🇩🇪", "\U0001f600" * 30, "漢字かな交じり文", "ж" * 50, "\ud7ff\ue000\uffff"),
    *(
        "cat " * 25_000,
        "x" * 100_000,
        "." * 300,
        "a\u0300" * 200,
        "query: cat",
        "cat\r\ndog\u2028x",
    ),
]
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """One tower with its tokenizer, which keeps upper case and has a token for some letters."""
    model = tiny_model(1, pooling="mean", serving_length=24)
    folder = tmp_path_factory.mktemp("source") / "model"
    exported.export(model, folder)
    text = json.loads((folder / "tokenizer.json").read_text())
    text["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(text))
    change(folder, "tokenizer_config.json", do_lower_case=False)
    return folder


def change(folder: Path, name: str, **fields) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content | fields))


def set_modules(folder: Path, *modules: tuple[str, str]) -> None:
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.{kind}"}
        for number, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))


def move_transformer(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        if file.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            shutil.move(file, folder / name / file.name)
    set_modules(folder, (name, "models.Transformer"), ("1_Pooling", "models.Pooling"))


def pool(folder: Path, **fields) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(fields))


def other_pooling_folder(folder: Path) -> None:
    shutil.move(folder / "1_Pooling", folder / "2_Pooling")
    set_modules(folder, ("", "models.Transformer"), ("2_Pooling", "models.Pooling"))


def new_class_names(folder: Path) -> None:
    set_modules(
        folder,
        ("", "base.modules.transformer.Transformer"),
        ("1_Pooling", "sentence_transformer.modules.pooling.Pooling"),
        ("2_Normalize", "base.modules.normalize.Normalize"),
    )
    change(folder, "2_Normalize/config.json", module_input_name="sentence_embedding")


def prompts(folder: Path, default: str | None = "query", **fields) -> None:
    texts = {"query": "query: ", "passage": "the cat ", "long": "cat " * 40, "nothing": None}
    settings = {"prompts": texts, "default_prompt_name": default} | fields
    change(folder, "config_sentence_transformers.json", **settings)


def old_lengths(folder: Path) -> None:
    (folder / "sentence_bert_config.json").unlink()
    change(folder, "sentence_roberta_config.json", max_seq_length=9, do_lower_case=True)


def old_pooling(folder: Path, *modes: str, **fields) -> None:
    pool(folder, word_embedding_dimension=16, **dict.fromkeys(modes, True), **fields)


NORMALIZE = (
    *(("", "models.Transformer"), ("1_Pooling", "models.Pooling")),
    ("2_Normalize", "models.Normalize"),
)
FOLDERS = {
    "as exported": lambda folder: None,
    "0_Transformer": lambda folder: move_transformer(folder, "0_Transformer"),
    "0_BERT": lambda folder: move_transformer(folder, "0_BERT"),
    "2_Pooling": other_pooling_folder,
    "new class names": new_class_names,
    "Normalize": lambda folder: set_modules(folder, *NORMALIZE),
    "lower case": lambda f: change(f, "sentence_bert_config.json", do_lower_case=True),
    "no length": lambda folder: (folder / "sentence_bert_config.json").unlink(),
    "older name of its settings": old_lengths,
    "truncation": lambda folder: prompts(folder, None, truncate_dim=5),
    "truncation of scaled vectors": lambda folder: (
        set_modules(folder, *NORMALIZE),
        prompts(folder, None, truncate_dim=5),
    ),
    "default prompt": prompts,
    "empty default prompt": lambda folder: prompts(folder, "nothing"),
    "long default prompt": lambda folder: prompts(folder, "long"),
    "special tokens as text": lambda folder: change(
        folder, "tokenizer_config.json", split_special_tokens=True
    ),
    "cut at the left": lambda folder: change(
        folder, "tokenizer_config.json", truncation_side="left"
    ),
    "no pooling mode": lambda folder: old_pooling(folder),
    "old pooling": lambda folder: old_pooling(folder, "pooling_mode_weightedmean_tokens"),
    **{
        f"{mode}, include_prompt={include}": lambda folder, mode=mode, include=include: (
            pool(folder, embedding_dimension=16, pooling_mode=mode, include_prompt=include),
            prompts(folder),
        )
        for mode in POOLINGS
        for include in (True, False)
    },
}


@pytest.fixture
def pair(source, tmp_path):
    """Makes a folder by a change of `source`; returns its model there and its model here."""

    def make(alter):
        folder = Path(shutil.copytree(source, tmp_path / "folder"))
        alter(folder)
        theirs = package.SentenceTransformer(str(folder), device="cpu")
        return theirs, SentenceEncoder.load(folder)

    return make


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_vectors_are_those_of_sentence_transformers(pair, name, tmp_path):
    theirs, ours = pair(FOLDERS[name])
    texts = [*TEXTS, *some_sentences(10)]
    expected = theirs.encode(texts)
    close(ours.encode(texts), expected)
    assert ours.width == theirs.get_embedding_dimension()


EXPORTED = (
    *("0_Transformer", "Normalize", "lower case", "truncation", "special tokens as text"),
    *("default prompt", "weightedmean, include_prompt=False"),
)


@pytest.mark.parametrize("name", EXPORTED)
def test_export_of_a_folder_gives_the_vectors_of_the_folder(pair, name, tmp_path):
    theirs, ours = pair(FOLDERS[name])
    texts = TEXTS[:12]
    expected = theirs.encode(texts)
    exported.export(ours.members[0].model, tmp_path / "again")
    close(
        package.SentenceTransformer(str(tmp_path / "again"), device="cpu").encode(texts), expected
    )
    close(SentenceEncoder.load(tmp_path / "again").encode(texts), expected)


@pytest.mark.parametrize("include", [True, False])
def test_prompts_are_those_of_sentence_transformers(pair, include):
    def alter(folder):
        pool(folder, embedding_dimension=16, pooling_mode="mean", include_prompt=include)
        prompts(folder)

    theirs, ours = pair(alter)
    for options in (
        *({"prompt": ""}, {"prompt": "dog "}, {"prompt_name": "passage"}, {"prompt_name": "long"}),
        {"prompt_name": "nothing"},
    ):
        close(ours.encode(TEXTS, **options), theirs.encode(TEXTS, **options))
    for name in ("encode_query", "encode_document"):
        close(getattr(ours, name)(TEXTS), getattr(theirs, name)(TEXTS))
        close(getattr(ours, name)(TEXTS, prompt="x"), getattr(theirs, name)(TEXTS, prompt="x"))
    assert np.abs(ours.encode_query(TEXTS) - ours.encode_document(TEXTS)).max() > 0.01
    with pytest.raises(UserError, match="prompt_name = 'absent'"):
        ours.encode("the cat", prompt_name="absent")


def refuse(folder: Path, kind: str) -> None:
    set_modules(folder, *NORMALIZE[:2], ("3_Other", kind))


REFUSED = {
    "Dense": lambda folder: refuse(folder, "models.Dense"),
    "LayerNorm": lambda folder: refuse(folder, "models.LayerNorm"),
    "WeightedLayerPooling": lambda folder: refuse(folder, "models.WeightedLayerPooling"),
    "its modules are Transformer": lambda folder: set_modules(folder, NORMALIZE[0]),
    "its modules are .*Normalize, Pooling": lambda folder: set_modules(
        folder, NORMALIZE[0], NORMALIZE[2], NORMALIZE[1]
    ),
    "module_input_name": lambda folder: (
        set_modules(folder, *NORMALIZE),
        change(folder, "2_Normalize/config.json", module_input_name="token_embeddings"),
    ),
    "path = '../other'": lambda folder: set_modules(
        folder, ("../other", "models.Transformer"), NORMALIZE[1]
    ),
    "pooling .*'cls', 'mean'": lambda folder: pool(
        folder, embedding_dimension=16, pooling_mode=["cls", "mean"]
    ),
    "pooling .*'cls', 'max'": lambda folder: old_pooling(
        folder, "pooling_mode_cls_token", "pooling_mode_max_tokens"
    ),
    "query_length": lambda f: change(f, "sentence_bert_config.json", query_length=8),
    "tokenizer_args": lambda f: change(
        f, "sentence_bert_config.json", tokenizer_args={"do_lower_case": True}
    ),
    "a_new_setting": lambda f: change(f, "sentence_bert_config.json", a_new_setting=1),
    "model_type": lambda folder: prompts(folder, model_type="SparseEncoder"),
    "default_prompt_name": lambda folder: prompts(folder, "absent"),
    "similarity_fn_name": lambda folder: prompts(folder, similarity_fn_name="maxsim"),
    "adapter_config.json": lambda folder: change(folder, "adapter_config.json", r=8),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("pooling", [None, "cls"])
def test_what_is_not_supported_is_refused_by_name(source, tmp_path, name, pooling):
    folder = Path(shutil.copytree(source, tmp_path / "folder"))
    REFUSED[name](folder)
    with pytest.raises(UserError, match=name):
        SentenceEncoder.load(folder, pooling=pooling)


def test_length_above_the_positions_is_cut_to_them(source, tmp_path, caplog):
    folder = Path(shutil.copytree(source, tmp_path / "folder"))
    change(folder, "sentence_bert_config.json", max_seq_length=514)
    caplog.set_level(logging.WARNING, logger="jtcse_jax")
    encoder = SentenceEncoder.load(folder)
    assert encoder.banks[0].serving_length == SHAPE.max_positions
    assert "514" in caplog.text and str(SHAPE.max_positions) in caplog.text


def test_export_keeps_the_settings(source, tmp_path):
    folder = Path(shutil.copytree(source, tmp_path / "folder"))
    prompts(folder, similarity_fn_name="dot", truncate_dim=7)
    export.export(export.Arguments(model=str(folder), output=str(tmp_path / "out")))
    before, after = (
        json.loads((path / "config_sentence_transformers.json").read_text())
        for path in (folder, tmp_path / "out")
    )
    before["prompts"]["nothing"] = ""
    assert after == before


def test_encode_command_puts_the_prompt_before_each_sentence(source, tmp_path):
    folder = Path(shutil.copytree(source, tmp_path / "folder"))
    prompts(folder)
    theirs = package.SentenceTransformer(str(folder), device="cpu")
    sentences = [sentence for sentence in some_sentences(9) if sentence]
    (tmp_path / "text.txt").write_text("\n".join(sentences))
    for number, options in enumerate(({}, {"prompt": "dog "}, {"prompt_name": "passage"})):
        output = tmp_path / f"{number}.npy"
        encode.encode(
            encode.Arguments(
                model=str(folder),
                input=str(tmp_path / "text.txt"),
                output=str(output),
                **options,
            )
        )
        close(np.load(output), theirs.encode(sentences, **options))
