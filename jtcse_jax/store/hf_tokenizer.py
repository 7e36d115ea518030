"""The tokenizer of a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast

from jtcse_jax.architecture import Architecture
from jtcse_jax.errors import UserError
from jtcse_jax.families.registry import FAMILIES, find_family
from jtcse_jax.runtime.files import read_json
from jtcse_jax.store.hf_config import CONFIG
from jtcse_jax.store.hf_files import find_folder
from jtcse_jax.store.workdir import TOKENIZER

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_SETTINGS = "tokenizer_config.json"
# transformers 5 calls this class the second name; version 4 knows only the first.
_GENERAL_CLASS = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Tokenizers of our families and their relatives.
OWN_CLASSES = tuple(
    f"{name}Tokenizer"
    for name in ("Bert", "Roberta", "XLMRoberta", "Camembert", "DistilBert", "MPNet", "Electra")
)


def find_tokenizer(name: str) -> Any:
    """The fast tokenizer of the folder `find_folder` returns; UserError if there is none.

    A workdir, or an exported folder of several towers, has it in a folder of its own.
    """
    folder = find_folder(name)
    places = [folder, folder / TOKENIZER, folder / "tower_0"]
    return load_tokenizer(next(filter(_has_tokenizer, places), folder))


def load_tokenizer(folder: str | Path) -> Any:
    """The folder's fast transformers tokenizer; UserError if there is none."""
    folder = Path(folder)
    advice = "save one there with `tokenizer.save_pretrained`, or name another folder."
    # Otherwise transformers would make a tokenizer of the five special tokens from config.json.
    if not _has_tokenizer(folder):
        raise UserError(f"{folder}: no tokenizer ({', '.join(TOKENIZER_FILES)}): {advice}")
    try:
        tokenizer = _class_of(folder).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # many types, from transformers and tokenizers
        reason = str(error).strip().split("\n")[0]
        if not (folder / "tokenizer.json").is_file() and any(folder.glob("*.model")):
            # transformers then tries other formats and names their packages.
            advice = f"pip install 'sentencepiece<0.2.2' protobuf, or {advice}"
        raise UserError(f"{folder}: cannot load its tokenizer ({reason}): {advice}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: its tokenizer is not fast (tokenizer.json): {advice}")
    # transformers would save these loading options with the tokenizer.
    for name in ("local_files_only", "is_local", "trust_remote_code"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def _has_tokenizer(folder: Path) -> bool:
    return any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern))


def _class_of(folder: Path) -> Any:
    """The transformers class that loads the folder's tokenizer.

    It is the class that AutoTokenizer chooses. For the usual ones AutoTokenizer is not asked: it
    imports torch, if installed, and lists all of transformers' models, which takes 4 s.
    """
    paths = (folder / _SETTINGS, folder / CONFIG)
    settings, config = (read_json(path) if path.is_file() else {} for path in paths)
    named, kind = settings.get("tokenizer_class"), config.get("model_type")
    if named in _GENERAL_CLASS and (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast
    family = find_family(kind)
    # For other models AutoTokenizer may choose another class than the named one.
    named_counts = kind is None if family is None else not family.general_tokenizer
    own = str(named).removesuffix("Fast")
    if named_counts and own in OWN_CLASSES and "auto_map" not in settings:
        return getattr(transformers, f"{own}Fast")
    return transformers.AutoTokenizer


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Writes a transformers tokenizer into the folder; OSError if that fails."""
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # tokenizers raises a plain Exception, even for a full disk
        raise OSError(str(error)) from error
    path = Path(folder) / _SETTINGS
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings["tokenizer_class"] in _GENERAL_CLASS:
        settings["tokenizer_class"] = _GENERAL_CLASS[0]
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def check_tokenizer(tokenizer: Any, architecture: Architecture) -> None:
    """Raises UserError if the tokenizer's ids do not fit the model, or its padding id differs."""
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= architecture.vocab_size:
        raise UserError(
            f"The tokenizer has ids up to {largest}, the model embeds vocab_size = "
            f"{architecture.vocab_size}: use the tokenizer of this model."
        )
    if tokenizer.pad_token_id != architecture.pad_token_id:
        raise UserError(
            f"The tokenizer pads with id {tokenizer.pad_token_id}, the model with pad_token_id = "
            f"{architecture.pad_token_id}: use the tokenizer of this model."
        )
    only = FAMILIES[architecture.family].fixed.get("pad_token_id", architecture.pad_token_id)
    if architecture.pad_token_id != only:
        raise UserError(
            f"The tokenizer pads with id {tokenizer.pad_token_id}; {architecture.family} needs one "
            f"that pads with id {only}: name one of its models, model.tokenizer."
        )
