"""The environment variables that set options of jax: which of them a command obeys.

Most options change numbers (`JAX_ENABLE_X64`), stop a run (`JAX_TRANSFER_GUARD`) or make it another
run than the one it resumes. A run is defined by its config alone, so a command takes from the
environment only what tells it about the machine. This module must run before jax is imported.
"""

import sys
from collections.abc import Callable, MutableMapping, Sequence

from jtcse_jax.errors import BAD_INPUT

TRUE, FALSE = ("1", "y", "yes", "t", "true", "on"), ("0", "n", "no", "f", "false", "off")


def _is_truth(value: str) -> bool:
    return value.lower() in TRUE + FALSE


def _is_number(value: str) -> bool:
    return value.removeprefix("-").replace(".", "", 1).isdecimal()


def _is_whole(value: str) -> bool:
    return value.removeprefix("-").isdecimal()


# The variables of the machine and of the cache of compiled programs, each with a check of its value
# if jax itself would end with a traceback.
OBEYED: dict[str, Callable[[str], bool]] = {
    **dict.fromkeys(
        (
            *("JAX_PLATFORMS", "JAX_CUDA_VISIBLE_DEVICES", "JAX_ROCM_VISIBLE_DEVICES"),
            *("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_PORT", "JAX_NUM_PROCESSES"),
            *("JAX_PROCESS_ID", "JAX_LOCAL_DEVICE_IDS", "JAX_COMPILATION_CACHE_DIR"),
        ),
        lambda value: True,
    ),
    "JAX_NUM_CPU_DEVICES": _is_whole,
    "JAX_LOG_COMPILES": _is_truth,
    "JAX_ENABLE_COMPILATION_CACHE": _is_truth,
    "JAX_COMPILATION_CACHE_MAX_SIZE": _is_whole,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": _is_number,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": _is_whole,
}


def is_command(argv: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether Python was started to run a command of this package, not as a library.

    The arguments are `sys.argv` and `sys.orig_argv` while the package is imported.
    """
    if argv and argv[0] == "-m":  # what Python writes there until it has found the module
        return any(one.removeprefix("-m").split(".")[0] == "jtcse_jax" for one in whole)
    return bool(argv) and argv[0].replace("\\", "/").rpartition("/")[2] in ("jtcse", "jtcse.exe")


def ignore_others(environ: MutableMapping[str, str]) -> None:
    """Removes the variables of jax that a command does not obey, with a warning.

    Ends the process, with one line, if the value of one that it obeys is malformed.
    """
    found = sorted(name for name in environ if name.startswith("JAX_"))
    ignored = [name for name in found if name not in OBEYED]
    for name in ignored:
        del environ[name]
    if ignored:
        print(f"{', '.join(ignored)}: ignored, since a run depends on its config", file=sys.stderr)
    for name in found:
        if name in OBEYED and not OBEYED[name](environ[name]):
            print(f"error: {name} = {environ[name]!r}: correct or unset it.", file=sys.stderr)
            sys.exit(BAD_INPUT)
