"""A WordPiece tokenizer trained on the user's own text, for towers that start from scratch."""

from collections import Counter

from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizer, PreTrainedTokenizerBase

from jtcse_jax.data.sources import Source
from jtcse_jax.errors import UserError

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Characters kept, the rest become [UNK]: 1000, or a quarter of the vocabulary if that is more (each
# character has two entries). Chinese needs thousands.
_ALPHABET = 1000


def train_tokenizer(
    source: Source, vocab_size: int, *, lowercase: bool = True
) -> PreTrainedTokenizerBase:
    """A BERT tokenizer with at most `vocab_size` entries; [PAD] has id 0.

    Accents and vowel signs are kept: in most languages they are part of the word.

    The same text gives the same vocabulary. Raises UserError if `vocab_size` is too small for the
    special tokens and the alphabet of the text.
    """
    trainer = BertWordPieceTokenizer(lowercase=lowercase, strip_accents=False)
    most = max(_ALPHABET, vocab_size // 4)
    counts = Counter()
    for sentence in source.read():
        counts.update(trainer.normalize(sentence))
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = sorted(character for character in ranked[:most] if not character.isspace())
    # The trainer numbers "##x" in the order of a randomly seeded hash table and breaks ties by
    # number, so no two runs agree. Passed as special tokens, they get a fixed number.
    fixed = _SPECIAL + alphabet + [f"##{character}" for character in alphabet]
    if vocab_size < len(fixed):
        raise UserError(
            f"model.scratch.vocab_size = {vocab_size}: the special tokens and the alphabet of "
            f"{source.spec} alone need {len(fixed)}."
        )
    trainer.train_from_iterator(
        source.read(),
        vocab_size=vocab_size,
        min_frequency=2,
        limit_alphabet=most,
        special_tokens=fixed,
        show_progress=False,
    )
    vocabulary = trainer.get_vocab(with_added_tokens=True)
    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, strip_accents=False)
