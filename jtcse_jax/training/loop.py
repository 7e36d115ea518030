"""The training loop: dispatch a step, read the metrics of the step before, evaluate, save."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jtcse_jax.batch import Batch
from jtcse_jax.config import Config
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.encoding.bank_encoder import BankEncoder
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import Stopped, UserError, writing
from jtcse_jax.evaluation.development import Development, DevScore, keep_cosines
from jtcse_jax.evaluation.inspection import layer_figures
from jtcse_jax.models.towers import Bank
from jtcse_jax.runtime import sharding
from jtcse_jax.runtime.distributed import is_primary
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.training.announce import harder_batches
from jtcse_jax.training.metrics import MetricsLog, Speed
from jtcse_jax.training.profile import Profile
from jtcse_jax.training.stop_signal import StopSignal
from jtcse_jax.training.train_step import TrainState, TrainStep, as_checkpoint
from jtcse_jax.user_path import user_path

NOT_FINITE = "not_finite"  # folder for batches whose step is not finite
STOP_AT = 10  # such batches in a row
CONTRASTIVE = ("nce", "icnce")  # terms of a loss
NEAR_ZERO = 0.01  # limit for such a term, in nats; chance is log(negatives + 1), 3.4 for 30
INSPECTED = 32  # dev sentences whose layers are inspected if config.eval_layers is set


@dataclass
class Loop:
    """One process's part of a run."""

    config: Config
    mesh: Mesh
    bank: Bank
    tokenizer: Any
    serving_length: int  #: in tokens; longer dev sentences are cut
    batches: PackedBatches
    train_step: TrainStep
    checkpoints: Checkpoints
    dev: Development | None
    log: MetricsLog
    say: Callable[[str], None]  #: prints a line, on one process only
    peak_flops: float | None = None  #: peak operations per second of all devices

    def run(self, state: TrainState, start: int, stop: int) -> TrainState:
        """Trains steps `start` to `stop`; evaluates and saves the last one.

        Raises UserError at a step that is not finite, unless such steps are skipped; the bad step
        is not saved. Raises Stopped after SIGTERM, with the step saved.
        """
        with StopSignal() as signal:
            return self._run(state, start, stop, signal)

    def _run(self, state: TrainState, start: int, stop: int, signal: StopSignal) -> TrainState:
        key = jax.random.key(self.config.seed, impl=self.config.dropout_generator)
        self._speed = Speed(stop - start)
        self._stop = stop
        self._skipped = 0
        self._look_at_contrast = start == 0
        unread: tuple[int, Batch, dict[str, Array]] | None = None
        profile = Profile(self.config, start, stop)
        for step, batch in self.batches.iterate(start, stop, timeout=self.config.data.timeout):
            state, metrics = self.train_step(state, sharding.place_batch(self.mesh, batch), key)
            if unread:
                self._read(*unread)
            done = step + 1
            if profile.step(done, state):
                self._speed.pause()
            unread = done, batch, metrics
            last = done == stop
            stopping = signal.asked()
            evaluate = self.dev is not None and (last or done % self.config.eval_every == 0)
            if evaluate or last or stopping or done % self.config.save_every == 0:
                # Before a step is saved it is known to be finite.
                self._read(*unread)
                unread = None
                scores = self.evaluate(state, done).as_metrics() if evaluate else None
                self.checkpoints.save(done, as_checkpoint(state), scores)
                self._speed.pause()
            if stopping:
                self._stop_here(done)
        # SIGTERM may also come while the last step is evaluated; then nothing more may start.
        if signal.asked():
            self._stop_here(stop)
        self.checkpoints.wait()
        return state

    def score_start(self, state: TrainState) -> None:
        """Scores and saves the model before the first step; training may not improve it."""
        scores = self.evaluate(state, 0).as_metrics()
        self.checkpoints.save(0, as_checkpoint(state), scores)

    def _stop_here(self, step: int) -> NoReturn:
        self.checkpoints.wait()
        self.say(f"stopped by SIGTERM, step {step} is saved; the same command resumes")
        raise Stopped

    def evaluate(self, state: TrainState, step: int) -> DevScore:
        """Returns the dev score of a state, logged under `step` and printed."""
        bank = BankEncoder(
            self.bank,
            state.params["towers"],
            self.tokenizer,
            self.serving_length,
            mesh=self.mesh,
        )
        encoder = SentenceEncoder([bank])
        # `encode` warns about cut sentences; one warning per run is enough.
        assert self.dev is not None  # the callers have checked
        score = self.dev.score(encoder.encode if step == 0 else encoder.encode_block)
        assert score.cosines is not None  # `Development.score` has set them
        layers = self._layer_figures(state, self.dev) if self.config.eval_layers else {}
        self.log.write(step, {**score.as_metrics(), **score.diagnostics, **layers})
        if is_primary():
            keep_cosines(user_path(self.config.workdir), step, score.cosines)
        if score.collapsed:
            cosine = score.diagnostics["dev_anisotropy"]
            self.say(
                f"step {step}  collapsed: different dev sentences have a mean cosine of "
                f"{cosine:.3f}; this step cannot be the best"
            )
        else:
            self.say(f"step {step}  dev Spearman {score}")
        return score

    def _layer_figures(self, state: TrainState, dev: Development) -> dict[str, float]:
        bank = Bank(self.bank.architecture, self.bank.num_towers, pooling=self.bank.pooling)
        params = jax.device_get(state.params["towers"])
        model = SavedModel(bank, params, self.tokenizer, self.serving_length, "this run")
        cross = self.config.model.cross
        crosses = self.config.objective.traits.crosses
        if not crosses or cross.mode == "off" or not cross.num_layers:
            cross = None  # no layer crosses in this run; use the default of `diagnose`
        sentences = list(dict.fromkeys(dev.pairs.first))[:INSPECTED]
        figures = layer_figures(model, sentences, cross=cross)
        return {f"dev_{name}": value for name, value in figures.items()}

    def _read(self, step: int, batch: Batch, metrics: dict[str, Array]) -> None:
        host = jax.device_get(metrics)
        finite, tokens, flops = (float(host.pop(name)) for name in ("finite", "tokens", "flops"))
        values = {name: float(value) for name, value in host.items()}
        self._speed.step(sentences=self.config.data.batch_size, tokens=tokens, flops=flops)
        self._skipped = 0 if finite else self._skipped + 1
        if finite:
            self.log.add(values)
        else:
            self._take_note(step, batch, values)
        if self.log.unwritten and (step % self.config.log_every == 0 or step == self._stop):
            means = self.log.flush(step, **self._speeds())
            names = sorted(values, key=_loss_first)
            terms = "  ".join(f"{name} {means[name]:.4g}" for name in names)
            speed = f"{means['sentences_per_second']:.1f} sentences/s"
            speed += f"  {means['tokens_per_second']:,.0f} tokens/s"
            if "mfu" in means:
                speed += f"  MFU {means['mfu']:.1%}"
            self.say(f"step {step}  {terms}  {speed}  ETA {self._eta()}")
            if self._look_at_contrast:
                self._look_at_contrast = False
                self._warn_of_easy_contrast(means)

    def _warn_of_easy_contrast(self, means: dict[str, float]) -> None:
        terms = {name: means[name] for name in CONTRASTIVE if name in means}
        if terms and max(terms.values()) < NEAR_ZERO:
            shown = ", ".join(f"{name} {value:.2g}" for name, value in terms.items())
            self.say(
                f"The contrastive loss is near zero from the start ({shown}): these sentences are "
                f"easy to tell apart. Try {harder_batches(self.config)}text whose sentences are "
                "more alike (docs/results.md has what was measured)."
            )

    def _speeds(self) -> dict[str, float]:
        """Sentences per second, real tokens of their views per second, and MFU.

        MFU is a step's operations by `flops.step_flops` / (seconds * peak of all devices).
        """
        speed = self._speed
        speeds = {f"{name}_per_second": speed.per_second(name) for name in ("sentences", "tokens")}
        if self.peak_flops:
            speeds["mfu"] = speed.per_second("flops") / self.peak_flops
        return speeds

    def _eta(self) -> str:
        seconds = self._speed.seconds_left
        return "?" if seconds != seconds else str(timedelta(seconds=round(seconds)))

    def _take_note(self, step: int, batch: Batch, values: dict[str, float]) -> None:
        """Saves the batch of a step that is not finite; UserError unless it may be skipped."""
        terms = ", ".join(f"{name} = {value:g}" for name, value in values.items())
        file = save_batch(user_path(self.config.workdir), step, batch, self.tokenizer)
        said = f"step {step} is not finite ({terms}); its batch is saved in {file}"
        if self.config.not_finite == "skip" and self._skipped < STOP_AT:
            self.say(f"{said}; skipped")
            return
        good = self.checkpoints.newest_step()
        where = "no checkpoint was saved yet"
        if good is not None:
            where = f"the last good checkpoint is step {good} in {self.config.workdir}"
        raise UserError(
            f"{said}: {where}. Try a lower optimizer.learning_rate, optimizer.max_grad_norm = 1.0 "
            "or more warm-up."
        )


def save_batch(workdir: Path, step: int, batch: Batch, tokenizer: Any) -> Path:
    """Writes this process's rows, and their sentences as text, to a .npz file for inspection.

    Raises UserError if it cannot be written.
    """
    file = workdir / NOT_FINITE / f"step_{step}_process_{jax.process_index()}.npz"
    rows = zip(
        batch.tokens.reshape(-1, batch.tokens.shape[-1]),
        batch.segments.reshape(-1, batch.segments.shape[-1]),
        strict=True,
    )
    sentences = [
        tokenizer.decode(tokens[segments == segment], skip_special_tokens=True)
        for tokens, segments in rows
        for segment in range(1, segments.max(initial=0) + 1)
    ]
    arrays: dict[str, Any] = {
        name: value for name, value in batch._asdict().items() if isinstance(value, np.ndarray)
    }
    with writing(file):
        file.parent.mkdir(exist_ok=True)
        np.savez(file, sentences=np.array(sentences), **arrays)
    return file


def _loss_first(name: str) -> tuple[bool, str]:
    return name != "loss", name
