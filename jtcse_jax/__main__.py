"""`jtcse COMMAND ...`, or `python -m jtcse_jax COMMAND ...`: runs one of the commands."""

import runpy
import sys

from jtcse_jax.version import __version__

COMMANDS = {
    "train": "train one run from a config",
    "pipeline": "train the stages of a recipe",
    "evaluate": "score models on STS, transfer and MTEB tasks",
    "encode": "write the vectors of a file of sentences",
    "search": "find the nearest sentences in a file",
    "pairs": "find the most similar pairs of a file: near-duplicates",
    "export": "write a folder for sentence-transformers and transformers",
    "augment": "make pairs by back-translation or word repetition, add hard negatives",
    "prepare": "clean and tokenise a large text",
    "preflight": "check a cluster before a run",
    "quickstart": "train and show examples before and after",
    "report": "write a page about runs",
}


def main() -> None:
    """Hands the arguments after COMMAND to the command; prints the list of commands without one."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command == "--version":
        print(f"jtcse_jax {__version__}")
    elif command in ("-h", "--help"):
        print(f"usage: jtcse COMMAND ...\n\n{_listed()}\n\njtcse COMMAND --help has the options.")
    elif command not in COMMANDS:
        print(f"error: {command} is not a command; choose one of:\n{_listed()}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [command, *arguments]
        runpy.run_module(f"jtcse_jax.{command}", run_name="__main__", alter_sys=True)


def _listed() -> str:
    return "\n".join(f"  {name:10}  {purpose}" for name, purpose in COMMANDS.items())


if __name__ == "__main__":
    main()
