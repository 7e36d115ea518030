"""Compiled programs are kept on disk: a second start does not compile again."""

from pathlib import Path

import jax

FOLDER = "~/.cache/jtcse_jax/compiled"


def keep_compiled() -> None:
    """Keeps what takes more than a second to compile in `FOLDER`, by jax's own cache.

    JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false keeps
    nothing.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(FOLDER).expanduser()))
