"""The English sentences that every Python carries: its reference topics and its docstrings.

The standard library is parsed, not imported: importing all of it has side effects.
"""

import ast
import hashlib
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
