"""What sentence-transformers' users type works here, with its results."""

import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest
from tiny_models import padded_vectors, some_sentences, tiny_model

from jtcse_jax.data.blocks import Blocks
from jtcse_jax.data.sources import open_source
from jtcse_jax.encoding import index
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.encoding.precision import quantized
from jtcse_jax.errors import UserError
from jtcse_jax.store import exported
from jtcse_jax.store.ensemble import Member

SENTENCES = some_sentences(12)


@pytest.fixture(scope="module")
def embed():
    return SentenceEncoder.of(tiny_model(1, pooling="mean"))


@pytest.fixture
def theirs(embed, tmp_path):
    package = pytest.importorskip("sentence_transformers", reason="not installed")
    embed.save_pretrained(tmp_path / "saved")
    return package.SentenceTransformer(str(tmp_path / "saved"), device="cpu")


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("count", [0, 2, 50])
def test_precisions_are_those_of_sentence_transformers(precision, count):
    util = pytest.importorskip("sentence_transformers.util", reason="not installed")
    vectors = np.random.default_rng(count).normal(size=(count, 12)).astype(np.float32)
    vectors[:, 3] = 0.5  # a component without a range
    expected = util.quantize_embeddings(vectors, precision=precision)
    found = quantized(vectors, precision)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


def test_encode_in_another_precision(embed):
    assert embed.encode(SENTENCES, precision="float16").dtype == np.float16
    np.testing.assert_array_equal(
        embed.encode(SENTENCES, precision="ubinary"), np.packbits(embed.encode(SENTENCES) > 0, -1)
    )
    for precision in ("int8", "float8"):
        with pytest.raises(UserError, match=f"precision = '{precision}'"):
            embed.encode("the cat", precision=precision)


def test_tensors_of_torch(embed):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = embed.encode(SENTENCES, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    rows = embed.encode(SENTENCES, convert_to_numpy=False)
    assert isinstance(rows, list) and len(rows) == 12
    for found in (tensor, torch.stack(rows)):
        np.testing.assert_array_equal(found.numpy(), embed.encode(SENTENCES))


def test_token_embeddings_are_those_of_sentence_transformers(embed, theirs):
    texts = [*SENTENCES, "", "cat " * 40]
    found = embed.encode(texts, output_value="token_embeddings")
    expected = theirs.encode(texts, output_value="token_embeddings")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-5)
    alone = embed.encode(texts[0], output_value="token_embeddings")
    np.testing.assert_allclose(alone, found[0], atol=1e-5)
    with pytest.raises(UserError, match="one tower"):
        SentenceEncoder.of(tiny_model(2)).encode("the cat", output_value="token_embeddings")


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_are_those_of_the_folder(embed, theirs, tmp_path, name):
    settings = tmp_path / "saved" / "config_sentence_transformers.json"
    content = json.loads(settings.read_text()) | {"similarity_fn_name": name}
    settings.write_text(json.dumps(content))
    ours = SentenceEncoder.load(tmp_path / "saved")
    theirs.similarity_fn_name = name
    assert ours.similarity_fn_name == name
    first, second = embed.encode(SENTENCES[:5]), embed.encode(SENTENCES[5:10])
    for function in ("similarity", "similarity_pairwise"):
        np.testing.assert_allclose(
            getattr(ours, function)(first, second),
            getattr(theirs, function)(first, second).numpy(),
            atol=2e-4,
        )


def test_properties_and_a_saved_folder(embed, theirs):
    assert embed.get_sentence_embedding_dimension() == embed.get_embedding_dimension() == 16
    assert embed.max_seq_length == theirs.max_seq_length == 16
    assert embed.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    np.testing.assert_allclose(theirs.encode(SENTENCES), embed.encode(SENTENCES), atol=1e-5)
    assert "mean pooling" in repr(embed) and "vectors of 16" in repr(embed)


@pytest.mark.parametrize("length", [9, 100])
def test_max_seq_length_can_be_set_as_in_sentence_transformers(theirs, tmp_path, length):
    embed = SentenceEncoder.of(tiny_model(1, pooling="mean"))
    assert embed.max_seq_length == 16
    before = embed.encode("cat " * 60 + "ก")
    embed.max_seq_length = theirs.max_seq_length = length
    texts = [*SENTENCES, "the cat " * 60, "cat " * 90]
    np.testing.assert_allclose(embed.encode(texts), theirs.encode(texts), atol=1e-5)
    embed.unknown = embed.truncated = 0
    assert np.abs(embed.encode("cat " * 60 + "ก") - before).max() > 1e-4
    assert (embed.truncated, embed.unknown) == ((1, 0) if length == 9 else (0, 1))
    embed.save_pretrained(tmp_path / "again")
    for copy in (SentenceEncoder.load(tmp_path / "again"), pickle.loads(pickle.dumps(embed))):
        assert copy.max_seq_length == length
        np.testing.assert_allclose(copy.encode(texts), embed.encode(texts), atol=1e-5)


def test_max_seq_length_is_bounded_by_the_positions_of_every_member():
    short = tiny_model(1)
    shape = dataclasses.replace(short.bank.architecture, max_positions=20)
    bank = dataclasses.replace(short.bank, architecture=shape)
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf[:, :20] if "position" in jax.tree_util.keystr(path) else leaf,
        short.params,
    )
    short = dataclasses.replace(short, bank=bank, params=params)
    mix = SentenceEncoder.of((Member(0.3, tiny_model(2, serving_length=90)), Member(0.7, short)))
    assert mix.max_seq_length == 16
    expected = mix.encode("the cat " * 60)
    for length, most in ((21, 20), (0, 200), (2, "3"), (None, 200), (20.0, 200)):
        with pytest.raises(UserError, match=f"max_seq_length: .*{most}"):
            mix.max_seq_length = length
    assert [bank.serving_length for bank in mix.banks] == [90, 16]
    np.testing.assert_array_equal(mix.encode("the cat " * 60), expected)
    mix.max_seq_length = 20
    assert [member.model.serving_length for member in mix.members] == [20, 20]


def test_mteb_does_not_take_a_model_of_another_length_for_it():
    pytest.importorskip("mteb", reason="mteb is not installed")
    embed = SentenceEncoder.of(tiny_model(1))
    before = embed.mteb_model_meta
    embed.max_seq_length = 20
    assert embed.mteb_model_meta.revision != before.revision
    assert embed.mteb_model_meta.max_tokens == 20


def test_ensemble_is_not_saved_as_one_folder(tmp_path):
    mix = SentenceEncoder.of((Member(0.3, tiny_model(1)), Member(0.7, tiny_model(2))))
    with pytest.raises(UserError, match="ensemble"):
        mix.save_pretrained(tmp_path / "out")


def test_pickled_encoder_gives_the_same_vectors():
    mix = SentenceEncoder.of((Member(0.3, tiny_model(1)), Member(0.7, tiny_model(2))))
    copy = pickle.loads(pickle.dumps(mix))
    np.testing.assert_array_equal(copy.encode(SENTENCES), mix.encode(SENTENCES))
    assert copy.weights == mix.weights


def test_index_does_not_take_a_file_name(embed):
    with pytest.raises(UserError, match="'sentences.txt'"):
        embed.build_index("sentences.txt")


@pytest.mark.parametrize("backend", ["exact", "flat", "hnsw"])
def test_saved_index_gives_the_same_hits(embed, tmp_path, backend):
    if backend != "exact":
        pytest.importorskip("faiss", reason="faiss is not installed (pip install faiss-cpu)")
    corpus = [*SENTENCES, "line\nbreak ", "\u2028 cat"]
    embed.build_index(corpus, backend=backend)
    expected = embed.search(["the cat", "old river"])
    embed.save_index(tmp_path / "index")
    again = SentenceEncoder.of(tiny_model(1, pooling="mean"))
    again.load_index(tmp_path / "index")
    for one, other in zip(again.search(["the cat", "old river"]), expected, strict=True):
        assert [hit.sentence for hit in one] == [hit.sentence for hit in other]
    again.build_index(corpus, vectors=embed.encode(corpus))
    assert again.search("the cat")[0].sentence == expected[0][0].sentence
    with pytest.raises(UserError, match="exists and is not empty"):
        embed.save_index(tmp_path / "index")
    with pytest.raises(UserError, match="another model"):
        SentenceEncoder.of(tiny_model(1)).load_index(tmp_path / "index")
    if backend == "exact":
        lines = some_sentences(12, longest=6)
        (tmp_path / "text.txt").write_text("\n".join(lines))
        vectors = embed.encode(lines)
        again.index_files(Blocks(open_source(str(tmp_path / "text.txt")), 4), vectors)
        embed.build_index(lines)
        assert again.search("the cat", 3) == embed.search("the cat", 3)
        assert again.pairs(5) == embed.pairs(5)
        for each in (again, embed):
            each.add_to_index("one more cat")
        assert again.search("one more cat", 9) == embed.search("one more cat", 9)
    stranger = SentenceEncoder.of(tiny_model(1))
    with pytest.raises(UserError, match="another model"):
        stranger.build_index(corpus, vectors=embed.encode(corpus))
    with pytest.raises(UserError, match="do not belong"):
        embed.build_index(corpus, vectors=np.zeros((3, 16), np.float32))


@pytest.mark.parametrize(
    ("backend", "file"),
    [
        *(("exact", name) for name in ("vectors.npy", index.SENTENCES, index.FACTS)),
        ("flat", "index.faiss"),
    ],
)
def test_damaged_index_is_named(embed, tmp_path, backend, file):
    if backend != "exact":
        pytest.importorskip("faiss", reason="faiss is not installed (pip install faiss-cpu)")
    embed.build_index(SENTENCES, backend=backend)
    embed.save_index(tmp_path / "index")
    content = (tmp_path / "index" / file).read_bytes()
    for damage in (content[: len(content) // 2], b"", b"\x80\x04N."):
        (tmp_path / "index" / file).write_bytes(damage)
        with pytest.raises(UserError, match="damaged"):
            embed.load_index(tmp_path / "index")
    (tmp_path / "index" / file).unlink()
    with pytest.raises(UserError, match=file):
        embed.load_index(tmp_path / "index")


def test_maximum_over_tokens_of_two_towers(tmp_path):
    package = pytest.importorskip("sentence_transformers", reason="not installed")
    model = tiny_model(2, pooling="max")
    exported.export(model, tmp_path / "out")
    theirs = package.SentenceTransformer(
        str(tmp_path / "out"), device="cpu", trust_remote_code=True
    )
    expected = padded_vectors(model, SENTENCES)
    np.testing.assert_allclose(SentenceEncoder.of(model).encode(SENTENCES), expected, atol=2e-5)
    np.testing.assert_allclose(theirs.encode(SENTENCES), expected, atol=2e-5)
