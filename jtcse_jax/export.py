"""`python -m jtcse_jax.export --model WORKDIR --output FOLDER`: writes a model for other tools."""

import dataclasses
from dataclasses import dataclass

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.sts_suite import read_scores
from jtcse_jax.runtime.command import command
from jtcse_jax.store import ensemble, exported, hub
from jtcse_jax.store.card import Card, read_card
from jtcse_jax.store.ensemble import ModelArguments
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.user_path import user_path


@dataclass(frozen=True, kw_only=True)
class Arguments(ModelArguments):
    """Writes a model as a folder of sentence-transformers with a model card. For one tower FOLDER
    is also its Hugging Face folder; for several, FOLDER/tower_K are theirs."""

    output: str
    """The folder to write; it must be empty or not exist."""
    normalize: bool = False
    """Make sentence-transformers scale the vectors to length 1 (cosines stay the same)."""
    prompts: tuple[str, ...] = ()
    """NAME=TEXT ...: texts that sentence-transformers puts before a sentence if asked by name."""
    license: str | None = None
    """Licence in the model card, an identifier of the hub such as apache-2.0."""
    language: tuple[str, ...] = ()
    """Languages in the model card, such as en."""
    base_model: tuple[str, ...] = ()
    """Base models in the model card, hub names; by default those of the training config."""
    dataset: tuple[str, ...] = ()
    """Training texts in the model card, hub names; by default those of `hub:` sources."""
    scores: str | None = None
    """JSON file written by `python -m jtcse_jax.evaluate --output`, for the model card."""
    push: str | None = None
    """USER/NAME on the Hugging Face hub; the folder is also uploaded there."""
    private: bool = False
    """Make the repository private if `push` creates it."""


def export(arguments: Arguments) -> None:
    """Writes and uploads. Raises UserError, for wrong arguments before the work."""
    exported.check_new(arguments.output)
    if arguments.push:
        hub.check_name(arguments.push)
    if ensemble.is_ensemble(arguments.model):
        raise UserError(
            f"--model {arguments.model}: an ensemble is not one folder: distil it into one tower "
            "(objective.name = distill) and export that."
        )
    if arguments.scores:
        read_scores(arguments.scores)  # an error before the work
    given = {
        "prompts": _prompts(arguments.prompts),
        "name": arguments.push,
        "license": arguments.license,
        "language": list(arguments.language),
        "base_models": list(arguments.base_model),
        "datasets": list(arguments.dataset),
        "normalize": arguments.normalize,
    }
    members = arguments.load_members()
    ((_, model),) = members
    if arguments.scores:
        given["scores"] = read_scores(arguments.scores, ensemble.fingerprint(members))
    card = _known_and_given(model, given)
    exported.export(model, arguments.output, card)
    print(f"{model.source} -> {arguments.output}")
    if arguments.push:
        folder = user_path(arguments.output)
        print(f"pushed: {hub.push(folder, arguments.push, private=arguments.private)}")


def _prompts(texts: tuple[str, ...]) -> dict[str, str]:
    for text in texts:
        if "=" not in text or text.startswith("="):
            raise UserError(f"--prompts {text}: write NAME=TEXT, such as 'query=query: '.")
    return dict(text.split("=", 1) for text in texts)


def _known_and_given(model: SavedModel, given: dict) -> Card:
    """The model's card, with the given fields replaced."""
    return dataclasses.replace(
        read_card(model), **{field: value for field, value in given.items() if value}
    )


main = command("export", Arguments, export)


if __name__ == "__main__":
    main()
