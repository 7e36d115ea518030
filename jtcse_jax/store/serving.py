"""The settings of a folder of sentence-transformers, which decide the vectors it gives.

`modules.json` lists the modules and their paths, each module has a config of its own, and
`config_sentence_transformers.json` has the prompts. Whatever is not supported is refused by name:
a setting that is passed over would give other vectors than sentence-transformers.
"""

import os
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from jtcse_jax.architecture import POOLINGS, Pooling
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.files import read_json
from jtcse_jax.store.hf_files import lies_in
from jtcse_jax.store.workdir import DESCRIPTION

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
SUM_OF_TOWERS = "sum_of_towers.SumOfTowers"  # our module, for several towers
# The first of these files that is there has the settings of the Transformer module.
_BACKBONES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
TRANSFORMER = tuple(f"sentence_{name}_config.json" for name in _BACKBONES)
# Before sentence-transformers 5.4 a pooling's config had a boolean for each mode.
POOLING_KEYS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
SUPPORTED = ("Transformer", "Pooling", "Normalize")
# Settings of the Transformer module that are read, or do not change a vector.
READ = ("max_seq_length", "do_lower_case", "unpad_inputs")
# Settings that do, and the values with which they do not.
_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
FIXED: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "modality_config": (_TEXT,),
    "module_output_name": ("token_embeddings",),
    "tokenizer_name_or_path": (None,),
    **dict.fromkeys(("query_length", "document_length", "query_expansion"), (None,)),
    **dict.fromkeys(
        (
            *("processing_kwargs", "processor_kwargs", "model_kwargs", "config_kwargs"),
            *("tokenizer_args", "model_args", "config_args"),
        ),
        (None, {}, {"trust_remote_code": True}, {"trust_remote_code": False}),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What happens to a sentence before the towers and to its vector after them."""

    normalize: bool = False  #: vectors are scaled to length 1
    truncate_dim: int | None = None  #: only this many components are kept, by default all
    include_prompt: bool = True  #: the tokens of a prompt are pooled too
    prompts: dict[str, str] = field(default_factory=dict)  #: texts put before a sentence, by name
    default_prompt_name: str | None = None  #: the prompt of sentences encoded without a choice
    chosen_prompt: str | None = None  #: the user's text in place of the default prompt
    similarity: str = "cosine"  #: how two vectors are compared: one of `SIMILARITIES`

    def prompt(self, text: str | None = None, name: str | None = None) -> str:
        """The text put before a sentence: `text`, else the prompt `name`, else the default one.

        As in sentence-transformers, every model has the prompts "query" and "document", which are
        empty unless it defines them. Raises UserError if the folder lacks a prompt of that name.
        """
        if text is not None:
            return text
        if name is None and self.chosen_prompt is not None:
            return self.chosen_prompt
        name = self.default_prompt_name if name is None else name
        prompts = self.all_prompts
        if name is None:
            return ""
        if name not in prompts:
            raise UserError(
                f"prompt_name = {reprlib.repr(name)}: the model has {', '.join(sorted(prompts))}."
            )
        return prompts[name]

    @property
    def all_prompts(self) -> dict[str, str]:
        """The prompts, with "query" and "document"."""
        return {"query": "", "document": ""} | self.prompts

    def changes(self) -> dict[str, Any]:
        """The settings that determine vectors and differ from the default; {} for most models."""
        settings = {
            "normalize": self.normalize or None,
            "truncate_dim": self.truncate_dim,
            "include_prompt": None if self.include_prompt else False,
            "prompt": self.prompt() or None,
            "prompts": {name: text for name, text in self.prompts.items() if text} or None,
        }
        return {name: value for name, value in settings.items() if value is not None}


def read_modules(folder: Path) -> dict[str, Any] | None:
    """The `towers`, `pooling`, `serving_length` and `lowercase` of a sentence-transformers folder.

    A value that the folder does not have is absent. None if the folder is not of
    sentence-transformers, or a sum of towers, whose `jtcse.json` has these. Raises UserError,
    with its name, for a module or a setting that is not supported.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = _read_modules(folder)
    if list(modules)[0] == "SumOfTowers":
        return None
    transformer = modules["Transformer"]
    path = next((path for name in TRANSFORMER if (path := transformer / name).is_file()), None)
    config = {} if path is None else read_json(path)
    for name, value in config.items():
        if name not in READ and (name not in FIXED or value not in FIXED[name]):
            raise UserError(f"{path}: {name} = {reprlib.repr(value)} is not supported.")
    description: dict[str, Any] = {
        "towers": [os.path.relpath(transformer, folder)],
        "pooling": _pooling(modules["Pooling"] / "config.json"),
        "lowercase": bool(config.get("do_lower_case")),
    }
    if config.get("max_seq_length") is not None:
        description["serving_length"] = config["max_seq_length"]
    return description


def read_serving(folder: Path) -> Serving:
    """The other settings of a sentence-transformers folder, or of a workdir, by default none.

    Raises UserError, with its name, for a setting that is not supported.
    """
    path = folder / DESCRIPTION
    if not (folder / MODULES).is_file():
        settings = read_json(path).get("serving", {}) if path.is_file() else {}
        if not isinstance(settings, dict):
            raise UserError(f"{path}: serving = {reprlib.repr(settings)} is not supported.")
        return _serving(path, settings)
    modules = _read_modules(folder)
    own: dict[str, Any] = {"normalize": "Normalize" in modules, "include_prompt": None}
    if "Pooling" in modules:
        own["include_prompt"] = read_json(modules["Pooling"] / "config.json").get("include_prompt")
    path = folder / SETTINGS
    return _serving(path, (read_json(path) if path.is_file() else {}) | own)


def workdir_settings(serving: Serving) -> dict[str, Any]:
    """The settings as `read_serving` reads them in a workdir."""
    return {
        "normalize": serving.normalize,
        "include_prompt": serving.include_prompt,
        "truncate_dim": serving.truncate_dim,
        "prompts": serving.prompts,
        "default_prompt_name": serving.default_prompt_name,
        "similarity_fn_name": serving.similarity,
    }


def _serving(path: Path, settings: dict[str, Any]) -> Serving:
    """Checks settings from the file `path`; UserError, with its name, for an unsupported one."""
    include_prompt = settings.get("include_prompt")
    prompts = settings.get("prompts") or {}
    width, similarity = settings.get("truncate_dim"), settings.get("similarity_fn_name")
    serving = Serving(
        normalize=bool(settings.get("normalize")),
        truncate_dim=width,
        include_prompt=include_prompt is None or bool(include_prompt),
        prompts={name: text or "" for name, text in prompts.items()}
        if isinstance(prompts, dict)
        else {},
        default_prompt_name=settings.get("default_prompt_name"),
        similarity="cosine" if similarity is None else similarity,
    )
    default = serving.default_prompt_name
    wrong = {
        "model_type": settings.get("model_type", "SentenceTransformer") != "SentenceTransformer",
        "prompts": not isinstance(prompts, dict)
        or not all(isinstance(text, str) for text in serving.prompts.values()),
        "default_prompt_name": default is not None
        and (not isinstance(default, str) or default not in serving.all_prompts),
        "similarity_fn_name": serving.similarity not in SIMILARITIES,
        "truncate_dim": width is not None and (type(width) is not int or width < 1),
    }
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        raise UserError(f"{path}: {name} = {reprlib.repr(settings.get(name))} is not supported.")
    return serving


def lowercased(tokenizer: Any) -> Any:
    """A fast tokenizer that writes every text in lower case, as `do_lower_case` asks.

    It keeps doing so when it is saved and loaded. Special tokens in a text stay as they are, and
    a tokenizer that writes lower case is returned unchanged, as in sentence-transformers.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own = backend.normalizer
    steps = [] if own is None else [own]
    if isinstance(own, normalizers.Sequence):
        steps = list(own)  # pyright: ignore[reportArgumentType]  # it has only __getitem__
    if any(isinstance(step, normalizers.Lowercase) for step in steps):
        return tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
    # The classes of single models would make a normalizer of their own when they are loaded.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        truncation_side=tokenizer.truncation_side,
        split_special_tokens=tokenizer.split_special_tokens,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )


def _read_modules(folder: Path) -> dict[str, Path]:
    """The folder of each module by the name of its class, in order; only sets that we support."""
    path = folder / MODULES
    modules: dict[str, Path] = {}
    for entry in read_json(path, list):
        entry = entry if isinstance(entry, dict) else {"type": entry}
        kind, where = str(entry.get("type")), entry.get("path")
        name = kind.rpartition(".")[2]
        ours = kind.endswith(SUM_OF_TOWERS)
        known = kind.startswith("sentence_transformers.") and name in SUPPORTED
        if not (ours or known) or name in modules:
            raise UserError(f"{path}: its {reprlib.repr(name)} module is not supported.")
        if not isinstance(where, str) or not lies_in(folder / where, folder):
            raise UserError(f"{path}: path = {reprlib.repr(where)} is not a folder inside it.")
        modules[name] = folder / where
    if list(modules) not in (
        ["Transformer", "Pooling"],
        ["Transformer", "Pooling", "Normalize"],
        ["SumOfTowers"],
        ["SumOfTowers", "Normalize"],
    ):
        order = ", ".join(modules) or "none"
        raise UserError(
            f"{path}: its modules are {order}: supported are Transformer, Pooling and, after them, "
            "Normalize."
        )
    config = modules.get("Normalize", folder) / "config.json"
    if "Normalize" in modules and config.parent != folder and config.is_file():
        for key in ("module_input_name", "module_output_name"):
            value = read_json(config).get(key) or "sentence_embedding"
            if value != "sentence_embedding":
                raise UserError(f"{config}: {key} = {reprlib.repr(value)} is not supported.")
    return modules


def _pooling(path: Path) -> Pooling:
    config = read_json(path)
    if "pooling_mode" in config:
        modes = config["pooling_mode"]
        modes = modes if isinstance(modes, list) else [modes]
    else:  # in the order of sentence-transformers, whose default is the mean
        modes = [mode for key, mode in POOLING_KEYS.items() if config.get(key)] or ["mean"]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UserError(
            f"{path}: pooling {reprlib.repr(modes)} is not supported: one of "
            f"{', '.join(POOLINGS)} is."
        )
    return modes[0]
