"""How XLA compiles, and the cache on disk that saves compiling again at the next start."""

import jax

from jtcse_jax.user_path import user_path

# XLA's options for a training step, by backend. On a CPU the updates of a parameter and of its
# moments are separate programs that read the old moments. Without this analysis XLA copies the
# moments first: 1.75 GB per step for the BERT-base twin.
STEP_OPTIONS = {"cpu": {"xla_cpu_copy_insertion_use_region_analysis": True}}

FOLDER = "~/.cache/jtcse_jax/compiled"


def keep_compiled() -> None:
    """Keeps programs that take over a second to compile in `FOLDER`, by jax's own cache.

    JAX_COMPILATION_CACHE_DIR chooses another folder; JAX_ENABLE_COMPILATION_CACHE=false turns the
    cache off.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(user_path(FOLDER)))
