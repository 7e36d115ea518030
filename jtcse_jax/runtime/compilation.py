"""How XLA compiles, and the cache on disk that saves compiling again at the next start."""

import jax
from jax.sharding import Mesh

from jtcse_jax.user_path import user_path

# XLA's options for a training step, by backend. On a CPU the updates of a parameter and of its
# moments are separate programs that read the old moments. Without this analysis XLA copies the
# moments first: 1.75 GB per step for the BERT-base twin.
STEP_OPTIONS = {"cpu": {"xla_cpu_copy_insertion_use_region_analysis": True}}

FOLDER = "~/.cache/jtcse_jax/compiled"


def step_options(mesh: Mesh | None) -> dict[str, bool] | None:
    """The options of a training step for the mesh's devices, which need not be this machine's."""
    return STEP_OPTIONS.get(_platform(mesh))


def stacks_layers(mesh: Mesh | None) -> bool:
    """Whether a training state has its equal layers stacked: not on CPUs, where it is slower.

    See `models.layer_stacks`.
    """
    return _platform(mesh) != "cpu"


def _platform(mesh: Mesh | None) -> str:
    return mesh.devices.flat[0].platform if mesh else jax.default_backend()


def keep_compiled() -> None:
    """Keeps programs that take over a second to compile in `FOLDER`, by jax's own cache.

    JAX_COMPILATION_CACHE_DIR chooses another folder; JAX_ENABLE_COMPILATION_CACHE=false turns the
    cache off.
    """
    # jax adds its options at run time.
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(user_path(FOLDER)))
