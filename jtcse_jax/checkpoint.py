"""Checkpoints on orbax: asynchronous, newest and best kept, every byte verified before its use.

A step's `manifest.json` is written into orbax's temporary folder just before the rename that
commits the step: a process killed at any moment leaves a step whole with its manifest, or no step.
A step without one is therefore not from here or has lost files, and is treated as damaged.
"""

import logging
import math
import os
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jtcse_jax import manifest
from jtcse_jax.errors import Hung, Stopped, UserError
from jtcse_jax.orbax_parts import KeepStep, Manager
from jtcse_jax.user_path import user_path

PyTree = Any

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run: `directory/STEP/`, damaged ones in `directory/corrupt/`.

    Every process of a run makes one and makes the same calls; the directory is on a file system
    that all of them share. Process 0 alone verifies, moves and deletes.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 2,
        best_metric: str | None = "dev_spearman",
        read_only: bool = False,
    ) -> None:
        """Opens the directory, making it where it is absent.

        Args:
            directory: on a mounted file system (no `gs://`: mount the bucket).
            keep: how many of the newest steps are kept, at least 1.
            best_metric: the step with its highest value is kept besides (of equals the newest).
            read_only: nothing is made, moved or deleted: for a reader beside a running trainer.

        Raises:
            UserError: `directory` is a URL, or cannot be made or written.
        """
        if "://" in str(directory):
            raise UserError(
                f"checkpoint directory {directory} is a URL: mount it as a folder and name that"
            )
        if keep < 1:
            raise UserError(f"checkpoints to keep must be at least 1, not {keep}")
        self._directory = user_path(directory).resolve()
        self._best_metric = best_metric
        self._read_only = read_only
        self._saving: dict[str, Any] = {}
        self._metrics: dict[int, dict[str, float]] = {}
        if not read_only:
            _make_writable(self._directory)
        policies = ocp.checkpoint_managers
        self._manager = Manager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep), KeepStep(self._best_of)]
                ),
                async_options=ocp.options.AsyncOptions(
                    post_finalization_callback=self._write_manifest
                ),
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                # A reader must not stumble over a step that the trainer deletes meanwhile.
                lightweight_initialize=True,
            ),
        )
        self._read_metrics()
        _wait_for_all("opened")

    def save(
        self, step: int, state: dict[str, PyTree], metrics: dict[str, float] | None = None
    ) -> None:
        """Starts saving; on return the arrays are copied off the devices and may be donated.

        Args:
            step: any step that is not there yet, also one before the newest.
            state: `{"params": pytree, "optimizer": pytree}`, leaves are arrays.
            metrics: what was measured at this step (the same on every process), or None.

        Raises:
            UserError: the step exists, or this save or the one before it could not be written.
        """
        if self._read_only:
            raise ValueError("these checkpoints were opened read_only")
        if step in self.steps():
            raise UserError(f"checkpoint step {step} is already in {self._directory}")
        leaves = {item: manifest.named_leaves(tree) for item, tree in state.items()}
        self._metrics[step] = {name: float(value) for name, value in (metrics or {}).items()}
        self._saving = {
            "step": step,
            "metrics": self._metrics[step],
            "leaves": manifest.described(leaves),
        }
        items = {item: ocp.args.StandardSave(named) for item, named in leaves.items() if named}
        try:
            # Without `force` orbax skips, silently, every step up to the newest one.
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._not_written(error) from error

    def restore(
        self,
        step: int | None = None,
        *,
        params: PyTree,
        optimizer: PyTree | None = None,
        prefer: Literal["newest", "best"] = "newest",
    ) -> tuple[int, dict[str, PyTree]]:
        """Returns the step and `{"params": ...}`, with `"optimizer"` where it is asked for.

        Args:
            step: a step, or None for the first good one in the order that `prefer` names: damaged
                ones on the way are moved to `directory/corrupt/` with a warning each.
            params: pytree of `jax.ShapeDtypeStruct`; a leaf comes with the sharding named there
                (whatever it was saved from), without one to the default device.
            optimizer: likewise, or None to leave the optimizer unread.
            prefer: without a step, the newest, or the first of `best_first`.

        Raises:
            UserError: the step is absent or damaged, no good step is left, or leaves differ from
                the saved ones in path, shape or dtype (all are listed).
        """
        step = self._good_step(step, prefer)
        wanted = {"params": params} | ({} if optimizer is None else {"optimizer": optimizer})
        named = {item: manifest.named_leaves(tree) for item, tree in wanted.items()}
        misfits = manifest.misfits(self._directory / str(step), manifest.described(named))
        if misfits:
            raise UserError(
                f"checkpoint step {step} in {self._directory} does not fit this configuration, "
                f"{len(misfits)} arrays differ: {'; '.join(misfits)}"
            )
        arguments = {
            item: ocp.args.StandardRestore({name: _placed(leaf) for name, leaf in leaves.items()})
            for item, leaves in named.items()
            if leaves
        }
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        except Exception as error:  # of many types, orbax's and tensorstore's
            raise UserError(
                f"checkpoint step {step} in {self._directory} does not open "
                f"({_first_line(error)}): its files are not a checkpoint of this program; name "
                "another step"
            ) from error
        return step, {
            item: jax.tree.unflatten(
                jax.tree.structure(tree), [restored[item][name] for name in named[item]]
            )
            for item, tree in wanted.items()
        }

    def steps(self) -> list[int]:
        """Returns the committed steps, ascending; as all queries, waits for a save under way."""
        self.wait()
        return sorted(self._manager.all_steps())

    def only_damaged(self) -> bool:
        """Returns whether there is no step because all that were there are damaged."""
        return not self.steps() and any((self._directory / manifest.CORRUPT).glob("*"))

    def newest_step(self) -> int | None:
        """Returns the newest step, or None if there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step with the highest finite `best_metric`, or None if no step has one."""
        return self._best_of(self.steps())

    def best_first(self) -> list[int]:
        """Returns the steps by falling `best_metric`, then the others, the newest first.

        Before all come those whose manifest is damaged: nobody knows what their score was.
        """

        def rank(step: int) -> tuple[float, int]:
            score = self.score(step)
            unscored = -math.inf if step in self._metrics else math.inf
            return (unscored if score is None else score), step

        return sorted(self.steps(), key=rank, reverse=True)

    def score(self, step: int) -> float | None:
        """Returns the finite `best_metric` of a step, or None."""
        score = self._metrics.get(step, {}).get(self._best_metric, math.nan)
        return score if math.isfinite(score) else None

    def metrics(self, step: int) -> dict[str, float]:
        """Returns what was passed to `save` with this step; empty where nothing was."""
        self.wait()
        return dict(self._metrics.get(step, {}))

    def wait(self) -> None:
        """Returns when no save is under way.

        Raises:
            UserError: the last save could not be written (disk full); earlier steps are whole.
        """
        try:
            self._manager.wait_until_finished()
        # Background failures are OSError, ValueError or RuntimeError alike (orbax, tensorstore).
        except Exception as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """Waits for a save under way and ends the background threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind in (None, Stopped):
            self.close()
        # To close is a joint step: where one process has failed the others do not join. On a disk
        # that hangs it would hang too.
        elif jax.process_count() == 1 and kind is not Hung:
            try:
                self.close()
            except UserError as error:  # what is on its way says more
                log.warning("%s", error)

    def _write_manifest(self) -> None:
        """Called by orbax on process 0, in the background, when all files of a step are written."""
        step = self._saving["step"]
        # Orbax's temporary folder, or the step's own on file systems where it commits in place.
        unfinished = self._directory.glob(f"{step}{ocp.path.atomicity_types.TMP_DIR_SUFFIX}*")
        manifest.write(next(unfinished, self._directory / str(step)), self._saving)

    def _good_step(self, step: int | None, prefer: str) -> int:
        """Process 0 reads the files and the others learn its verdict: one hashing, one opinion."""
        steps = self.steps()
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self._directory}, there are {steps}")
        chosen, trouble = -1, "process 0 says why"
        if jax.process_index() == 0:
            in_order = self.best_first() if prefer == "best" else steps[::-1]
            for candidate in in_order if step is None else [step]:
                trouble = manifest.problem(self._directory / str(candidate))
                if trouble is None:
                    chosen = candidate
                    break
                if step is None:
                    self._set_aside(candidate, trouble)
        if jax.process_count() > 1:
            chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        if not self._read_only:
            self._reload()
        _wait_for_all("step chosen")
        if chosen >= 0:
            return chosen
        if step is None and steps:
            how = f"all were damaged and are in {manifest.CORRUPT}/ now; "
            if self._read_only:
                how = "all are damaged: "
            raise UserError(
                f"no good checkpoint in {self._directory}: {how}train anew in another workdir"
            )
        if step is None:
            raise UserError(f"no checkpoint in {self._directory}: train first")
        raise UserError(
            f"checkpoint step {step} in {self._directory} is damaged: {trouble}: "
            "name another, or none for a good one"
        )

    def _set_aside(self, step: int, trouble: str) -> None:
        folder = self._directory / str(step)
        outcome = "left there" if self._read_only else manifest.set_aside(folder)
        log.warning("checkpoint %s is damaged, passed over, %s: %s", folder, outcome, trouble)

    def _best_of(self, steps: list[int]) -> int | None:
        scored = [step for step in steps if self.score(step) is not None]
        return max(scored, key=lambda step: (self.score(step), step), default=None)

    def _not_written(self, error: Exception) -> UserError:
        # Orbax has already forgotten the steps it meant to delete after this save.
        self._reload()
        return UserError(
            f"checkpoint step {self._saving.get('step')} could not be written to "
            f"{self._directory} ({_first_line(error)}): make room or name another directory; "
            f"whole steps there: {sorted(self._manager.all_steps())}"
        )

    def _reload(self) -> None:
        self._manager.reload()
        self._read_metrics()

    def _read_metrics(self) -> None:
        self._metrics = {}
        for step in self._manager.all_steps():
            found = manifest.read(self._directory / str(step))
            if found is not None:
                self._metrics[step] = found.get("metrics", {})


def _make_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(13, "no permission to write")
    except OSError as error:
        raise UserError(
            f"checkpoint directory {directory} cannot be used ({error.strerror}): name another"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _wait_for_all(moment: str) -> None:
    """Process 0 must not move or delete a step while another process still lists the directory."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"checkpoints: {moment}")


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
