"""What each objective needs and does; their losses are in `training/objectives.py`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Traits:
    """What the rest of a run must know about an objective."""

    min_towers: int = 1
    crosses: bool = False  #: runs crossed streams
    needs_teacher: bool = False
    embeds: bool = True  #: trains sentence vectors, on two views; False: words, on one


TRAITS = {
    "simcse": Traits(),
    "tncse": Traits(min_towers=2),
    "jtcse": Traits(min_towers=2, crosses=True),
    "distill": Traits(needs_teacher=True),
    "mlm": Traits(embeds=False),
}
