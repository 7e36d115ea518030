"""Writes the model card of an exported folder: `README.md` with the hub's YAML header."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import huggingface_hub

from jtcse_jax.store.card import FILE, Card
from jtcse_jax.store.saved_model import SavedModel

POOLINGS = {
    "cls": "the last hidden state at [CLS]",
    "mean": "the mean over tokens",
    "max": "the largest values over tokens",
    "mean_sqrt_len_tokens": "the sum over tokens, divided by the root of their number",
    "weightedmean": "the mean over tokens, weighted by their position",
    "lasttoken": "the last hidden state at the last token",
}
TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "jtcse"]
SENTENCES = 'sentences = ["A man plays a guitar.", "Someone is making music."]'


def write_card(folder: Path, model: SavedModel, card: Card) -> None:
    """Writes `jtcse_card.json` and `README.md` into the folder."""
    content = json.dumps(dataclasses.asdict(card), indent=2) + "\n"
    (folder / FILE).write_text(content, encoding="utf-8")
    (folder / "README.md").write_text(card_text(model, card), encoding="utf-8")


def card_text(model: SavedModel, card: Card) -> str:
    """The model card: the hub's YAML header and Markdown."""
    header = huggingface_hub.ModelCardData(
        language=card.language or None,
        license=card.license or None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=TAGS,
        base_model=card.base_models or None,
    )
    parts = [
        f"---\n{header.to_yaml()}\n---\n",
        f"# {card.name or 'A sentence encoder'}\n",
        *_introduction(model, card),
        "## Use\n",
        *_use(model, card),
        *_scores(card),
        *_training(card),
        *_license(card),
    ]
    return "\n".join(parts)


def _introduction(model: SavedModel, card: Card) -> list[str]:
    bank = model.bank
    shape = bank.architecture
    towers = "one tower" if bank.num_towers == 1 else f"each of {bank.num_towers} towers, summed"
    pooling = POOLINGS[bank.pooling]
    rows = {
        "Embedding": f"{shape.hidden_size} numbers: {pooling} of {towers}",
        "Normalised": "to length 1" if card.normalize else "no: compare vectors by their cosine",
        "Longest sentence": f"{model.serving_length} tokens; longer ones are cut",
        "Tower": f"{shape.family.upper()}, {shape.num_layers} layers of {shape.hidden_size}, "
        f"vocabulary of {shape.vocab_size:,}",
        "Prompts": ", ".join(
            f"`{name}`: {json.dumps(text)}" for name, text in card.prompts.items() if text
        )
        or "none",
    }
    trained = (
        " Trained without labels by [JTCSE](https://arxiv.org/abs/2505.02366) or a method of its "
        "family, with `jtcse_jax`."
    )
    return [
        "Maps a sentence to a vector: the closer two meanings, the larger the cosine of their "
        f"vectors.{trained if card.train_config else ''}\n",
        _table(("", ""), rows.items()),
    ]


def _use(model: SavedModel, card: Card) -> list[str]:
    name = json.dumps(card.name or "path/to/this/folder")
    example = (
        f"{SENTENCES}\nvectors = model.encode(sentences)\nprint(model.similarity(vectors, vectors))"
    )
    package = "from sentence_transformers import SentenceTransformer\n"
    ours = (
        f"from jtcse_jax import SentenceEncoder\n\nmodel = SentenceEncoder.load({name})\n{example}"
    )
    if model.bank.num_towers == 1:
        theirs = [_code(f"{package}\nmodel = SentenceTransformer({name})\n{example}")]
    else:
        remote = f"model = SentenceTransformer({name}, trust_remote_code=True)"
        modules = f"SumOfTowers.load({name})"
        imports = f"{package}from jtcse_jax.store.sum_of_towers import SumOfTowers\n"
        if card.normalize:
            modules += ", Normalize()"
            imports += "from sentence_transformers.models import Normalize\n"
        prompts = f", prompts={json.dumps(card.prompts)}" if card.prompts else ""
        local = f"model = SentenceTransformer(modules=[{modules}]{prompts})"
        theirs = [
            "The module `sum_of_towers.py` in this folder sums the towers:\n",
            _code(f"{package}\n{remote}\n{example}"),
            "To run no code from this folder, use the same class of the package `jtcse_jax`:\n",
            _code(f"{imports}\n{local}\n{example}"),
        ]
    if model.bank.pooling in ("cls", "mean"):
        theirs += ["In `transformers`:\n", _code(_transformers_code(model, name))]
    return [*theirs, "In JAX:\n", _code(ours)]


def _transformers_code(model: SavedModel, name: str) -> str:
    if model.bank.pooling == "cls":
        pool = "hidden[:, 0]"
    else:
        pool = "(hidden * mask).sum(1) / mask.sum(1)"
    lines = [
        "import torch",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        SENTENCES,
    ]
    count = model.bank.num_towers
    where = name if count == 1 else f'{name}, subfolder="tower_0"'
    lines += [
        f"tokenizer = AutoTokenizer.from_pretrained({where})",
        "encoded = tokenizer(",
        "    sentences, padding=True, truncation=True, "
        f'max_length={model.serving_length}, return_tensors="pt"',
        ")",
    ]
    if model.bank.pooling == "mean":
        lines.append('mask = encoded["attention_mask"][..., None]')
    forward = "hidden = tower(**encoded).last_hidden_state"
    if count == 1:
        lines += [
            f"tower = AutoModel.from_pretrained({name}).eval()",
            "with torch.no_grad():",
            f"    {forward}",
            f"vectors = {pool}",
        ]
    else:
        lines += [
            "vectors = 0",
            f"for number in range({count}):",
            f'    tower = AutoModel.from_pretrained({name}, subfolder=f"tower_{{number}}").eval()',
            "    with torch.no_grad():",
            f"        {forward}",
            f"    vectors = vectors + {pool}",
        ]
    return "\n".join(lines)


def _scores(card: Card) -> list[str]:
    parts = []
    dev = card.metrics.get("dev_spearman")
    if dev is not None:
        source = card.train_config.get("data", {}).get("dev")
        interval = ""
        if {"dev_low", "dev_high"} <= card.metrics.keys():
            low, high = (100 * card.metrics[name] for name in ("dev_low", "dev_high"))
            interval = f" (95 % interval {low:.2f} to {high:.2f})"
        parts.append(
            f"Spearman x 100 on the development set{f' `{source}`' if source else ''}, which "
            f"selects the step: {100 * dev:.2f}{interval}.\n"
        )
    if card.scores:
        tasks = card.scores["spearman"]
        parts.append(f"{card.scores.get('protocol', 'Spearman times 100')}:\n")
        parts.append(_table(tasks, [[f"{score:.2f}" for score in tasks.values()]]))
    return ["## Scores\n", *parts] if parts else []


def _training(card: Card) -> list[str]:
    config = card.train_config
    if not config:
        return []
    data, objective = config.get("data", {}), config.get("objective", {})
    rows = {
        "Text": f"`{data.get('source')}`",
        "Objective": f"`{objective.get('name')}`",
        "Start": ", ".join(f"`{name}`" for name in config.get("model", {}).get("towers", [])),
        "Step": f"{card.step:,}" if card.step is not None else "",
        "Batch": f"{data.get('batch_size')} sentences",
        "Learning rate": f"{config.get('optimizer', {}).get('learning_rate')}",
        "Seed": f"{config.get('seed')}",
    }
    return [
        "## Training\n",
        _table(("", ""), rows.items()),
        "<details><summary>The whole config</summary>\n",
        f"```json\n{json.dumps(config, indent=2)}\n```\n",
        "</details>\n",
    ]


def _license(card: Card) -> list[str]:
    said = f"`{card.license}`." if card.license else "Not stated."
    bases = ", ".join(f"`{name}`" for name in card.base_models)
    note = f" The start models have their own licences: {bases}." if bases else ""
    return ["## Licence\n", f"{said}{note}\n"]


def _table(head: Any, rows: Any) -> str:
    lines = [head, ["---"] * len(tuple(head)), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"
