"""On the PYTHONPATH of a Python that must not find torch, as if it were not installed.

Without torch a command starts in half the time: transformers would import it.
"""

from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
