"""How XLA compiles, and that what it compiled is kept on disk for a second start."""

import jax

from jtcse_jax.user_path import user_path

# XLA's options for a training step, by backend. On a CPU the update of a parameter and of its
# moments are programs of their own that read the old moments, and without this analysis XLA copies
# these first: 1.75 GB a step of the BERT-base twin.
STEP_OPTIONS = {"cpu": {"xla_cpu_copy_insertion_use_region_analysis": True}}

FOLDER = "~/.cache/jtcse_jax/compiled"


def keep_compiled() -> None:
    """Keeps what takes more than a second to compile in `FOLDER`, by jax's own cache.

    JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false keeps
    nothing.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(user_path(FOLDER)))
