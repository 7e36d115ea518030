"""Checkpoints with orbax: saved in the background, verified byte by byte before use.

A step's `manifest.json` is written into orbax's temporary folder just before the rename that
commits the step. So if a process is killed at any moment, the step is complete with its manifest,
or it does not exist. A step without a manifest was written by another program or has lost files;
it is treated as damaged.
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

from jtcse_jax.errors import Hung, Stopped, UserError
from jtcse_jax.store import manifest
from jtcse_jax.store.orbax_parts import KeepStep, Manager
from jtcse_jax.user_path import user_path

PyTree = Any

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, in `directory/STEP/`; damaged ones are in `directory/corrupt/`.

    Every process of a run creates one and makes the same calls; all processes share the
    directory's file system. Only process 0 verifies, moves and deletes.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 2,
        best_metric: str | None = "dev_spearman",
        read_only: bool = False,
    ) -> None:
        """Opens the directory and creates it if it does not exist.

        Args:
            directory: on a mounted file system (mount a bucket; `gs://` is not supported).
            keep: how many of the newest steps are kept, at least 1.
            best_metric: the step with its highest value is kept too (the newest of equal ones).
            read_only: create, move and delete nothing; for a reader beside a running trainer.

        Raises:
            UserError: `directory` is a URL, or cannot be created or written.
        """
        if "://" in str(directory):
            raise UserError(
                f"checkpoint directory {directory} is a URL: mount it as a folder and give its path"
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
                # A reader must not fail if the trainer deletes a step meanwhile.
                lightweight_initialize=True,
            ),
        )
        self._read_metrics()
        _wait_for_all("opened")

    def save(
        self, step: int, state: dict[str, PyTree], metrics: dict[str, float] | None = None
    ) -> None:
        """Starts saving; on return the arrays have been copied and may be donated.

        Args:
            step: any step that is not saved yet; it may be older than the newest.
            state: `{"params": pytree, "optimizer": pytree}` of arrays.
            metrics: the values measured at this step (the same on every process), or None.

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
            # Without `force` orbax silently skips any step that is not newer than the newest.
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
        """Returns the step and `{"params": ...}`, plus `"optimizer"` if it was requested.

        Args:
            step: a step, or None for the first undamaged one in the order of `prefer`. Damaged
                steps before it are moved to `directory/corrupt/`, with a warning for each.
            params: pytree of `jax.ShapeDtypeStruct`. A leaf is restored with the sharding given
                there, whatever it was saved with, or else on the default device.
            optimizer: likewise; None does not read the optimizer.
            prefer: the order if `step` is None: newest first, or that of `best_first`.

        Raises:
            UserError: the step does not exist or is damaged, no undamaged step is left, or leaves
                differ from the saved ones in path, shape or dtype (the message lists all).
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
        except Exception as error:  # orbax and tensorstore raise many types
            raise UserError(
                f"checkpoint step {step} in {self._directory} cannot be opened "
                f"({_first_line(error)}): its files are not a checkpoint of this program; choose "
                "another step"
            ) from error
        return step, {
            item: jax.tree.unflatten(
                jax.tree.structure(tree), [restored[item][name] for name in named[item]]
            )
            for item, tree in wanted.items()
        }

    def steps(self) -> list[int]:
        """Returns the committed steps, ascending. Like all queries, it waits for a running save."""
        self.wait()
        return sorted(self._manager.all_steps())

    def only_damaged(self) -> bool:
        """Returns whether there were steps and all of them are damaged."""
        return not self.steps() and any((self._directory / manifest.CORRUPT).glob("*"))

    def newest_step(self) -> int | None:
        """Returns the newest step, or None if there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step with the highest finite `best_metric`, or None if no step has one."""
        return self._best_of(self.steps())

    def best_first(self) -> list[int]:
        """Returns the steps by decreasing `best_metric`, then the unscored ones, newest first.

        Steps with a damaged manifest come before all others, since their score is unknown.
        """

        def rank(step: int) -> tuple[float, int]:
            score = self.score(step)
            unscored = -math.inf if step in self._metrics else math.inf
            return (unscored if score is None else score), step

        return sorted(self.steps(), key=rank, reverse=True)

    def score(self, step: int) -> float | None:
        """Returns the finite `best_metric` of a step, or None."""
        if self._best_metric is None:
            return None
        score = self._metrics.get(step, {}).get(self._best_metric, math.nan)
        return score if math.isfinite(score) else None

    def metrics(self, step: int) -> dict[str, float]:
        """Returns the metrics that were saved with this step; empty if there are none."""
        self.wait()
        return dict(self._metrics.get(step, {}))

    def wait(self) -> None:
        """Waits until no save is running.

        Raises:
            UserError: the last save could not be written (disk full); earlier steps are intact.
        """
        try:
            self._manager.wait_until_finished()
        # Failures in the background are OSError, ValueError or RuntimeError (orbax, tensorstore).
        except Exception as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """Waits for a running save and ends the background threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Stopped):
            self.close()
        # All processes must close together; if one has failed, the others do not take part. If the
        # disk hangs, closing would hang too.
        elif jax.process_count() == 1 and kind is not Hung:
            try:
                self.close()
            except UserError as error:  # the exception that is being raised matters more
                log.warning("%s", error)

    def _write_manifest(self) -> None:
        """Orbax calls it on process 0, in the background, when a step's files are written."""
        step = self._saving["step"]
        # In orbax's temporary folder, or in the step's folder if the file system commits in place.
        unfinished = self._directory.glob(f"{step}{ocp.path.atomicity_types.TMP_DIR_SUFFIX}*")
        manifest.write(next(unfinished, self._directory / str(step)), self._saving)

    def _good_step(self, step: int | None, prefer: str) -> int:
        """Process 0 checks the files and broadcasts the step it chose to the others."""
        steps = self.steps()
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self._directory}, there are {steps}")
        chosen, trouble = -1, "see the output of process 0"
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
            how = f"all were damaged and are now in {manifest.CORRUPT}/; "
            if self._read_only:
                how = "all are damaged: "
            raise UserError(
                f"no good checkpoint in {self._directory}: {how}train again in another workdir"
            )
        if step is None:
            raise UserError(f"no checkpoint in {self._directory}: train first")
        raise UserError(
            f"checkpoint step {step} in {self._directory} is damaged: {trouble}: "
            "choose another step, or none to get an undamaged one"
        )

    def _set_aside(self, step: int, trouble: str) -> None:
        folder = self._directory / str(step)
        outcome = "left there" if self._read_only else manifest.set_aside(folder)
        log.warning("checkpoint %s is damaged and skipped, %s: %s", folder, outcome, trouble)

    def _best_of(self, steps: list[int]) -> int | None:
        scored = [step for step in steps if self.score(step) is not None]
        return max(scored, key=lambda step: (self.score(step), step), default=None)

    def _not_written(self, error: Exception) -> UserError:
        # Orbax no longer lists the steps it meant to delete after this save.
        self._reload()
        return UserError(
            f"checkpoint step {self._saving.get('step')} could not be written to "
            f"{self._directory} ({_first_line(error)}): free some space or choose another "
            f"directory; complete steps there: {sorted(self._manager.all_steps())}"
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
            f"checkpoint directory {directory} cannot be used ({error.strerror}): choose another"
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
