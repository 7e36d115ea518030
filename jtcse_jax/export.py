"""`python -m jtcse_jax.export --model WORKDIR --output FOLDER`: a model that other tools open."""

import dataclasses
import logging
from dataclasses import dataclass

import tyro

from jtcse_jax import ensemble, exported, hub
from jtcse_jax.card import Card, read_card, read_scores
from jtcse_jax.ensemble import ModelArguments
from jtcse_jax.errors import UserError, one_line_errors
from jtcse_jax.saved_model import SavedModel
from jtcse_jax.user_path import user_path


@dataclass(frozen=True, kw_only=True)
class Arguments(ModelArguments):
    """Writes a model as a folder of sentence-transformers with a model card: FOLDER itself is the
    Hugging Face folder of one tower, FOLDER/tower_K are those of more."""

    output: str
    """The folder to write; new or empty."""
    normalize: bool = False
    """sentence-transformers scales the vectors to length 1 (cosines stay what they are)."""
    prompts: tuple[str, ...] = ()
    """NAME=TEXT ...: texts that sentence-transformers puts before a sentence on demand."""
    license: str | None = None
    """The card's licence, an identifier of the hub, as apache-2.0."""
    language: tuple[str, ...] = ()
    """The card's languages, as en."""
    base_model: tuple[str, ...] = ()
    """The card's base models, hub names; by default what the training config tells."""
    scores: str | None = None
    """JSON file of `python -m jtcse_jax.evaluate --output`, for the card."""
    push: str | None = None
    """USER/NAME of the Hugging Face hub, where the folder is uploaded as well."""
    private: bool = False
    """A repository that `push` makes is private."""


def export(arguments: Arguments) -> None:
    """Writes and uploads; UserError for wrong arguments (before the work) and what fails."""
    exported.check_new(arguments.output)
    if arguments.push:
        hub.check_name(arguments.push)
    if ensemble.find_description(arguments.model):
        raise UserError(
            f"--model {arguments.model}: an ensemble has no one folder: distil it into one tower "
            "(objective.name = distill) and export that."
        )
    given = {
        "prompts": _prompts(arguments.prompts),
        "scores": read_scores(arguments.scores) if arguments.scores else {},
        "name": arguments.push,
        "license": arguments.license,
        "language": list(arguments.language),
        "base_models": list(arguments.base_model),
        "normalize": arguments.normalize,
    }
    ((_, model),) = arguments.load_members()
    card = _known_and_given(model, given)
    exported.export(model, arguments.output, card)
    print(f"{model.source} -> {arguments.output}")
    if arguments.push:
        folder = user_path(arguments.output)
        print(f"pushed: {hub.push(folder, arguments.push, private=arguments.private)}")


def _prompts(texts: tuple[str, ...]) -> dict[str, str]:
    for text in texts:
        if "=" not in text or text.startswith("="):
            raise UserError(f"--prompts {text}: write NAME=TEXT, as 'query=query: '.")
    return dict(text.split("=", 1) for text in texts)


def _known_and_given(model: SavedModel, given: dict) -> Card:
    """The model's card, its fields replaced by those that are given."""
    return dataclasses.replace(
        read_card(model), **{field: value for field, value in given.items() if value}
    )


@one_line_errors
def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    export(tyro.cli(Arguments, prog="python -m jtcse_jax.export"))


if __name__ == "__main__":
    main()
