"""Translation into another language and back, with the Marian models of transformers (in torch)."""

import importlib
import warnings
from types import ModuleType
from typing import Any

from jtcse_jax.errors import UserError

_COMMAND = "pip install torch sentencepiece"


class Translator:
    """A Marian model for one direction, on torch's GPU if there is one.

    Attributes:
        name: the model's folder or hub name.
        truncated: number of texts cut to `max_len` tokens so far.
    """

    def __init__(
        self, name: str, *, batch_size: int, num_beams: int, max_len: int, prefix: str = ""
    ):
        """Loads the model.

        Args:
            name: a folder or hub name, such as Helsinki-NLP/opus-mt-en-fr.
            batch_size: number of texts translated at once.
            num_beams: beams of the search; 1 takes the most likely token each time.
            max_len: longest text read or written, in tokens of the model; longer ones are cut.
            prefix: token put before every text; it names the target language to a model that has
                several, such as >>cmn_Hans<<.
        Raises:
            UserError: torch or sentencepiece is not installed, the model does not exist, is not a
                Marian model or is incomplete.
        """
        self.name, self.truncated = name, 0
        self._torch = _import("torch")
        _import("sentencepiece")
        self._device = "cuda" if self._torch.cuda.is_available() else "cpu"
        self._tokenizer, model = _load(name)
        self._model = model.to(self._device).eval()
        self._batch_size, self._num_beams = batch_size, num_beams
        positions = self._model.config.max_position_embeddings
        if max_len > positions:
            raise UserError(f"{name}: --max-len {max_len} is above its {positions} positions.")
        self._max_len, self._prefix = max_len, prefix
        if prefix and self._tokenizer.convert_tokens_to_ids(prefix) == self._tokenizer.unk_token_id:
            known = ", ".join(self._tokenizer.supported_language_codes) or "none"
            raise UserError(f"{name}: it does not know the prefix {prefix}; it knows: {known}.")

    def translate(self, texts: list[str]) -> list[str]:
        """Returns the translations in the order of the texts; some may be empty.

        A batch holds texts of similar length, so that little computation goes into padding.
        Raises UserError if the device has too little memory for a batch.
        """
        tokens = [self._cut(ids) for ids in self._encode(texts)]
        # The longest texts first: if memory is too small, the first batch fails.
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]), reverse=True)
        translations = [""] * len(texts)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            for i, translation in zip(batch, self._run([tokens[i] for i in batch]), strict=True):
                translations[i] = translation
        return translations

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        prefixed = [f"{self._prefix} {text}".lstrip() for text in texts]
        return self._tokenizer(prefixed, verbose=False)["input_ids"]

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self._max_len:
            return ids
        self.truncated += 1
        return [*ids[: self._max_len - 1], self._tokenizer.eos_token_id]

    def _run(self, batch: list[list[int]]) -> list[str]:
        padded = self._tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(self._device)
        try:
            with self._torch.inference_mode():
                written = self._model.generate(
                    **padded,
                    num_beams=self._num_beams,
                    do_sample=False,
                    max_new_tokens=self._max_len,
                )
        except self._torch.OutOfMemoryError as error:
            raise UserError(
                f"{self._device} has too little memory for --batch-size {self._batch_size} with "
                f"--num-beams {self._num_beams}; give a smaller --batch-size to resume."
            ) from error
        return self._tokenizer.batch_decode(written, skip_special_tokens=True)


def back_translate(sentences: list[str], there: Translator, back: Translator) -> list[str]:
    """Returns each sentence's round-trip translation, in order; "" if a model wrote nothing."""
    pivots = there.translate(sentences)
    # For an empty text a model invents a sentence, so empty texts are not translated.
    kept = [i for i, pivot in enumerate(pivots) if pivot.strip()]
    results = [""] * len(sentences)
    for i, result in zip(kept, back.translate([pivots[i] for i in kept]), strict=True):
        results[i] = result
    return results


def _load(name: str) -> tuple[Any, Any]:
    """The tokenizer and the model."""
    transformers = _import("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        kind = transformers.AutoConfig.from_pretrained(name).model_type
        if kind != "marian":
            raise UserError(f"{name}: a model of type {kind}; name a Marian model (opus-mt).")
        with warnings.catch_warnings(action="ignore"):  # about sacremoses, which is not used here
            tokenizer = transformers.MarianTokenizer.from_pretrained(name)
        model, report = transformers.MarianMTModel.from_pretrained(name, output_loading_info=True)
    except UserError:
        raise
    except Exception as error:  # of a dozen types: missing, offline, damaged ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} cannot be opened as a Marian model: correct the name, or download it and give "
            f"its folder ({type(error).__name__}: {reason})"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{name}: the weights have no {missing[0]}; download the model again.")
    return tokenizer, model


def _import(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"back-translate needs the package {package}: {_COMMAND}") from error
