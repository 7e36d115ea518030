"""Compiled programs are kept on disk: a second start does not compile again."""

import jax

from jtcse_jax.user_path import user_path

FOLDER = "~/.cache/jtcse_jax/compiled"


def keep_compiled() -> None:
    """Keeps what takes more than a second to compile in `FOLDER`, by jax's own cache.

    JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false keeps
    nothing.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(user_path(FOLDER)))
