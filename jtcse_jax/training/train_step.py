"""One pure training step, jitted over the mesh; its state is donated."""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding

from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.models.layer_stacks import has_stacks, stack_layers, unstack_layers
from jtcse_jax.models.teacher import Teacher
from jtcse_jax.models.towers import Bank, Params
from jtcse_jax.runtime import sharding
from jtcse_jax.runtime.compilation import stacks_layers, step_options
from jtcse_jax.training.flops import Work, step_flops
from jtcse_jax.training.gradients import loss_and_gradient
from jtcse_jax.training.optimizer import global_norm

PyTree = Any


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: Array  #: scalar int32, number of steps done
    #: {"towers": bank parameters [K, ...], and what the objective adds}; on a GPU or TPU with the
    #: layers stacked, and so are the moments
    params: Params
    opt_state: optax.OptState


@dataclass(frozen=True)
class TrainStep:
    """A jitted step with the teacher's parameters, which are its argument and not its constants."""

    jitted: jax.stages.Wrapped
    frozen: tuple[Params, ...]

    def __call__(
        self, state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """The state after the step, and its metrics."""
        return self.jitted(state, batch, key, self.frozen)

    def lower(self, state: TrainState, batch: Batch, key: Array) -> jax.stages.Lowered:
        """Lowers the step for such arrays or shapes, to compile and inspect it."""
        return self.jitted.lower(state, batch, key, self.frozen)


def init_state(
    params: Params, optimizer: optax.GradientTransformation, mesh: Mesh | None = None
) -> TrainState:
    """The state before the first step; its layers are stacked if the mesh's devices gain by it."""
    if stacks_layers(mesh):
        params = stack_layers(params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    bank: Bank,
    objective: ObjectiveConfig,
    optimizer: optax.GradientTransformation,
    state_shardings: TrainState | None = None,
    teacher: Teacher | None = None,
) -> TrainStep:
    """Makes a jitted `(state, batch, key) -> (state, metrics)`; the state keeps its sharding.

    Equal arguments share a jitted step: a second run in a process, with another seed or teacher of
    the same shape, compiles nothing if its batches have the same shapes.

    The randomness of a step is a function of (key, state.step). A teacher embeds the batch first,
    without dropout. Metrics are float32 scalars: the loss, its terms, the gradient norm before
    clipping, `finite`, the batch's real `tokens` and the `flops` of `flops.step_flops`. A step
    whose loss or gradient is not finite changes only the step count. The step itself decides this,
    because the state is donated and the metrics are read later.
    """
    params = teacher.params if teacher else ()
    teacher = teacher and dataclasses.replace(teacher, params=())
    leaves, structure = jax.tree.flatten(state_shardings)  # a tree of dictionaries has no hash
    jitted = _jitted_step(bank, objective, optimizer, structure, tuple(leaves), teacher)
    return TrainStep(jitted, params)


@lru_cache(maxsize=2)  # few: one of BERT-base has 236 MB of code on a TPU
def _jitted_step(
    bank: Bank,
    objective: ObjectiveConfig,
    optimizer: optax.GradientTransformation,
    structure: Any,  # a PyTreeDef, a class of a compiled module that has no types
    leaves: tuple[NamedSharding, ...],
    teacher: Teacher | None,
) -> jax.stages.Wrapped:
    """The jitted function of `make_train_step`; the state's shardings come flattened."""
    state_shardings = jax.tree.unflatten(structure, leaves)

    def train_step(state: TrainState, batch: Batch, key: Array, frozen: tuple[Params, ...]):
        step_key = jax.random.fold_in(key, state.step)
        work = {
            "tokens": Work.of(batch).tokens,
            "flops": step_flops(bank, objective, batch, teacher),
        }
        if teacher is not None:
            batch = batch._replace(target=_targets(teacher, frozen, batch), teacher=())
        params, opt_state = state.params, state.opt_state
        loss, terms, grads = loss_and_gradient(
            bank, unstack_layers(_whole(bank.mesh, params)), batch, step_key, objective
        )
        if has_stacks(params):
            grads = stack_layers(grads)
        # Whole before split: otherwise the compiler would split activations like parameters.
        grads = _whole(bank.mesh, grads)
        if state_shardings is not None:
            grads = jax.lax.with_sharding_constraint(grads, state_shardings.params)
        updates, new_opt_state = optimizer.update(grads, opt_state, params)
        new = optax.apply_updates(params, updates), new_opt_state
        # If the norm is finite, moments and updates are finite too, so the new state need not be
        # checked: a pass over it costs a CPU 7 % of a step.
        grad_norm = global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        old = params, opt_state
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        metrics = {"loss": loss, **terms, "grad_norm": grad_norm, "finite": finite, **work}
        return TrainState(state.step + 1, *kept), metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(state_shardings, None),
        compiler_options=step_options(bank.mesh),
    )


def _whole(mesh: Mesh | None, params: Params) -> Params:
    """Parameters or gradients sharded as a bank runs: each device has its towers whole."""
    if mesh is None or mesh.shape["fsdp"] == 1:
        return params
    return jax.lax.with_sharding_constraint(params, sharding.whole_towers(mesh, params))


def _targets(teacher: Teacher, frozen: tuple[Params, ...], batch: Batch) -> Array:
    """The teacher's embeddings [2B, D], one micro-batch after the other."""
    if not batch.has_micro_batches:
        return teacher.embed(frozen, batch.teacher)
    targets = jax.lax.map(lambda rows: teacher.embed(frozen, rows), batch.teacher)
    return targets.reshape(-1, targets.shape[-1])


def single_layers(mesh: Mesh, tree: PyTree) -> PyTree:
    """A state, or a part of it, with its layers unstacked, sharded over the mesh as a state is.

    On the devices this is a copy. A tree without stacks is returned as it is.
    """
    if not has_stacks(tree):
        return tree
    shardings = sharding.state_shardings(mesh, jax.eval_shape(unstack_layers, tree))
    return jax.jit(unstack_layers, out_shardings=shardings)(tree)


def as_checkpoint(state: TrainState) -> dict[str, Any]:
    """A state of single layers as two items of a checkpoint; inference can read the towers only."""
    rest = {name: value for name, value in state.params.items() if name != "towers"}
    return {
        "params": state.params["towers"],
        "optimizer": {"step": state.step, "opt_state": state.opt_state, "rest": rest},
    }


def from_checkpoint(saved: dict[str, Any]) -> TrainState:
    """The inverse of `as_checkpoint`, for arrays or their shapes."""
    optimizer = saved["optimizer"]
    params = {"towers": saved["params"], **optimizer["rest"]}
    return TrainState(optimizer["step"], params, optimizer["opt_state"])
