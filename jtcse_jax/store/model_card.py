"""Writes the model card of an exported folder: `README.md` with the hub's YAML header.

The text is in `model_card*.md`; this module fills in its fields.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from jtcse_jax.data.text_files import holds_pairs
from jtcse_jax.families.registry import FAMILIES
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
TRAINED = (
    " Trained${how} by [JTCSE](https://arxiv.org/abs/2505.02366) or a method of its family, with "
    "`jtcse_jax`."
)
COLLAPSED = (
    "\n\n**Its vectors have collapsed: those of different sentences are nearly the same, so their "
    "cosines mean little.**"
)
IMPORT_NORMALIZE = "from sentence_transformers.models import Normalize\n"
CITATION = """
## Citation

```bibtex
@article{zong2025jtcse,
  title = {JTCSE: Joint Tensor-Modulus Constraints and Cross-Attention for Unsupervised Contrastive Learning of Sentence Embeddings},
  author = {Zong, Tianyu and Yi, Hongzhu and Shi, Bingkang and Wang, Yuanxiang and Xu, Jungang},
  journal = {arXiv preprint arXiv:2505.02366},
  year = {2025}
}
```
"""  # noqa: E501


def write_card(folder: Path, model: SavedModel, card: Card) -> None:
    """Writes `jtcse_card.json` and `README.md` into the folder."""
    content = json.dumps(dataclasses.asdict(card), indent=2) + "\n"
    (folder / FILE).write_text(content, encoding="utf-8")
    (folder / "README.md").write_text(card_text(model, card), encoding="utf-8")


def card_text(model: SavedModel, card: Card) -> str:
    """The model card: the hub's YAML header and Markdown."""
    bank, shape = model.bank, model.bank.architecture
    one = bank.num_towers == 1
    path = json.dumps(card.name or "path/to/this/folder")
    prompts = ", ".join(f"`{name}`: {_quoted(text)}" for name, text in card.prompts.items() if text)
    bases = ", ".join(f"`{name}`" for name in card.base_models)
    note = f" The start models have their own licences: {bases}." if bases else ""
    return _fill(
        "model_card.md",
        header=_header(card).to_yaml(),
        name=card.name or "A sentence encoder",
        trained=_trained(card.train_config) + COLLAPSED * _collapsed(card),
        hidden_size=shape.hidden_size,
        pooled=POOLINGS[bank.pooling],
        towers="one tower" if one else f"each of {bank.num_towers} towers, summed",
        normalised="to length 1" if card.normalize else "no: compare vectors by their cosine",
        serving_length=model.serving_length,
        family=FAMILIES[shape.family].title,
        num_layers=shape.num_layers,
        vocab_size=f"{shape.vocab_size:,}",
        prompts=prompts.replace("|", "\\|") or "none",
        sentence_transformers=_fill(
            "model_card_one_tower.md" if one else "model_card_towers.md",
            path=path,
            normalize=", Normalize()" if card.normalize else "",
            import_normalize=IMPORT_NORMALIZE if card.normalize else "",
            prompts=f", prompts={_quoted(card.prompts)}" if card.prompts else "",
        ).rstrip(),
        transformers=_transformers(model, path, card.normalize),
        path=path,
        scores=_scores(card),
        training=_training(card),
        license=(f"`{card.license}`." if card.license else "Not stated.") + note,
    )


def _trained(config: Mapping[str, Any]) -> str:
    """The sentence on the training; pairs in the text may come from labels or not."""
    if not config:
        return ""
    data, how = config.get("data", {}), " without labels"
    views = _views(str(data.get("source")), data.get("columns", ()))
    if config.get("objective", {}).get("name") == "distill":
        how = ""  # the teacher's text counts too
    elif data.get("pairs") != "none" and views > 1 + data.get("positives", 1):
        how = " on pairs of sentences with hard negatives"
    elif data.get("pairs") != "none" and views > 1:
        how = " on pairs of sentences"
    return Template(TRAINED).substitute(how=how)


def _views(source: str, columns: Sequence[str]) -> int:
    """Sentences in a line or record of the text."""
    if columns or source.startswith("hub:"):
        return len(columns or source.split(":")[-1].split(","))
    return 2 if holds_pairs(Path(source)) else 1


def _collapsed(card: Card) -> bool:
    return bool({"dev_collapsed", "text_collapsed"} & card.metrics.keys())


def _transformers(model: SavedModel, path: str, normalize: bool) -> str:
    """Code for `transformers`, which has no pooling of its own; "" for the rarer poolings."""
    bank = model.bank
    pool = {"cls": "hidden[:, 0]", "mean": "(hidden * mask).sum(1) / mask.sum(1)"}
    if bank.pooling not in pool:
        return ""
    towers = [""] if bank.num_towers == 1 else [f"tower_{k}" for k in range(bank.num_towers)]
    code = _fill(
        "model_card_transformers.md",
        first_tower=f'{path}, subfolder="{towers[0]}"' if towers[0] else path,
        folders=json.dumps(towers),
        path=path,
        serving_length=model.serving_length,
        pool=pool[bank.pooling],
        normalize="\nvectors = torch.nn.functional.normalize(vectors)" if normalize else "",
    )
    return f"{code}\n"


def _fill(file: str, **fields: object) -> str:
    text = Path(__file__).with_name(file).read_text(encoding="utf-8")
    return Template(text).substitute(fields)


def _header(card: Card) -> ModelCardData:
    """The YAML header; the scores are Spearman's rho, raw."""
    scores = {task: rho / 100 for task, rho in card.scores.get("spearman", {}).items()}
    scores.pop("average", None)
    if "dev_spearman" in card.metrics:
        dev = card.train_config.get("data", {}).get("dev") or "development set"
        score, stem = round(card.metrics["dev_spearman"], 4), Path(dev).stem
        if round(scores.get(stem, -2), 4) == score:  # of the same file
            del scores[stem]
        scores[f"{dev} (dev)"] = score
    return ModelCardData(
        language=card.language or None,
        license=card.license or None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=TAGS,
        base_model=card.base_models or None,
        datasets=card.datasets or None,
        model_name=card.name or "A sentence encoder",
        eval_results=[
            EvalResult(
                task_type="semantic-similarity",
                task_name="Semantic Similarity",
                dataset_type=name,
                dataset_name=name,
                metric_type="spearman_cosine",
                metric_name="Spearman of cosines",
                metric_value=round(rho, 4),
            )
            for name, rho in scores.items()
        ]
        or None,
    )


def _scores(card: Card) -> str:
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
    return "\n".join(["\n## Scores\n", *parts]) if parts else ""


def _training(card: Card) -> str:
    config = card.train_config
    if not config:
        return ""
    data, objective = config.get("data", {}), config.get("objective", {})
    starts = card.base_models or config.get("model", {}).get("towers", [])
    rows = {
        "Text": f"`{data.get('source')}`",
        "Objective": f"`{objective.get('name')}`",
        "Base model" if card.base_models else "Start": ", ".join(f"`{name}`" for name in starts),
        "Step": f"{card.step:,}" if card.step is not None else "",
        "Batch": f"{data.get('batch_size')} sentences",
        "Learning rate": f"{config.get('optimizer', {}).get('learning_rate')}",
        "Seed": f"{config.get('seed')}",
    }
    parts = [
        "\n## Training\n",
        _table(("", ""), rows.items()),
        "<details><summary>The whole config</summary>\n",
        f"```json\n{_quoted(config, indent=2)}\n```\n",
        "</details>\n",
    ]
    return "\n".join(parts) + CITATION


def _quoted(value: Any, indent: int | None = None) -> str:
    """As JSON, which Python reads too, with all letters as they are."""
    return json.dumps(value, indent=indent, ensure_ascii=False)


def _table(head: Any, rows: Any) -> str:
    lines = [head, ["---"] * len(tuple(head)), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
