"""A WordPiece tokenizer trained on the user's own text, for towers that start from scratch.

WordPiece turns a word into [UNK] if the word has one unknown character or more than 100 characters.
In a script without spaces (Thai, Khmer, Burmese, ...) a word in this sense is a whole clause or
sentence. So after BERT's own splitting at spaces and punctuation, an unknown character is a word of
its own, and what lies between is cut into words of at most 100 characters.
"""

import re
from collections import Counter

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jtcse_jax.data.sources import Source
from jtcse_jax.errors import UserError

_ROLES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_SPECIAL = list(_ROLES.values())
# Characters kept, the rest become [UNK]: 1000, or a quarter of the vocabulary if that is more (each
# character has two entries). Chinese needs thousands.
_ALPHABET = 1000
_LONGEST_WORD = 100  # characters, WordPiece's own limit


def train_tokenizer(
    source: Source, vocab_size: int, *, lowercase: bool = True
) -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer with at most `vocab_size` entries; [PAD] has id 0.

    Accents and vowel signs are kept: in most languages they are part of the word. A sentence has
    one [UNK] for each of its characters that is not in the alphabet, and no other.

    The same text gives the same vocabulary. Raises UserError if `vocab_size` is too small for the
    special tokens and the alphabet of the text.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    most = max(_ALPHABET, vocab_size // 4)
    counts = Counter()
    for sentence in source.read():
        counts.update(normalizer.normalize_str(sentence))
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
    trained = Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    trained.normalizer = normalizer
    trained.pre_tokenizer = _word_splitter(alphabet)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        limit_alphabet=most,
        special_tokens=fixed,
        show_progress=False,
    )
    trained.train_from_iterator(source.read(), trainer)
    return _with_special_tokens(trained)


def _word_splitter(alphabet: list[str]) -> pre_tokenizers.PreTokenizer:
    """Splits text into words of known characters, and unknown characters one by one."""
    known = "".join(map(re.escape, alphabet))
    words = Regex(f"[{known}]{{1,{_LONGEST_WORD}}}|.")
    return pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(words, "isolated")]
    )


def _with_special_tokens(trained: Tokenizer) -> PreTrainedTokenizerBase:
    """The trained tokenizer, with only BERT's five special tokens as such."""
    vocabulary = trained.get_vocab(with_added_tokens=True)
    # The model is made again: the trainer had marked the alphabet as special.
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = trained.normalizer
    backend.pre_tokenizer = trained.pre_tokenizer
    backend.decoder = decoders.WordPiece()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **_ROLES)
