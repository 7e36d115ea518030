"""The training loop: dispatch a step, read the metrics of the step before, evaluate, save."""

import contextlib
import dataclasses
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jtcse_jax.batch import Batch
from jtcse_jax.config import Config
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.encoding.bank_encoder import BankEncoder
from jtcse_jax.encoding.encoder import SentenceEncoder, warn_of_losses
from jtcse_jax.encoding.progress import step_bar
from jtcse_jax.errors import Interrupted, Stopped, UserError, writing
from jtcse_jax.evaluation import development
from jtcse_jax.evaluation.development import METRIC, Development, DevScore, keep_cosines
from jtcse_jax.evaluation.diagnostics import anisotropy
from jtcse_jax.evaluation.inspection import layer_figures
from jtcse_jax.models.towers import Bank
from jtcse_jax.runtime import sharding
from jtcse_jax.runtime.distributed import is_primary, say
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.store.serving import Serving
from jtcse_jax.store.workdir import METRICS
from jtcse_jax.training import announce, flops
from jtcse_jax.training.callbacks import Callbacks
from jtcse_jax.training.metrics import MetricsLog, Speed, read_jsonl
from jtcse_jax.training.profile import Profile
from jtcse_jax.training.stop_signal import StopSignal
from jtcse_jax.training.train_step import TrainState, TrainStep, as_checkpoint, single_layers
from jtcse_jax.user_path import user_path

NOT_FINITE = "not_finite"  # folder for batches whose step is not finite
STOP_AT = 10  # such batches in a row
INSPECTED = 32  # dev sentences whose layers are inspected if config.eval_layers is set


@dataclass
class Loop:
    """One process's part of a run."""

    config: Config
    bank: Bank
    tokenizer: Any
    serving_length: int  #: in tokens; longer dev sentences are cut
    serving: Serving  #: its default prompt is put before dev sentences
    batches: PackedBatches
    train_step: TrainStep
    checkpoints: Checkpoints
    dev: Development | None
    sample: list[str]  #: without a dev set, sentences of the text: they show a collapse
    resuming: bool  #: from a checkpoint
    stop: int  #: number of steps of the whole run
    callbacks: Callbacks = field(default_factory=Callbacks)

    def __post_init__(self) -> None:
        assert self.bank.mesh is not None  # the bank of a run has one
        self.mesh = self.bank.mesh
        self.workdir = user_path(self.config.workdir)

    def run(self, state: TrainState) -> None:
        """Trains to step `stop`, evaluates and saves; a new run also scores its start.

        Raises UserError at a step that is not finite, unless such steps are skipped; the bad step
        is not saved. Raises Stopped after SIGTERM or Ctrl-C, with the step saved.
        """
        first = int(state.step)
        self._log = MetricsLog(
            self.workdir,
            start_step=first if self.resuming else None,
            write=is_primary(),
            wandb=self.config.wandb,
            config=dataclasses.asdict(self.config),
        )
        with contextlib.closing(self._log):
            if self.dev is None:
                none = "no data.dev" if self.config.data.dev is None else 'data.dev is ""'
                say(f"{none}: no best step is selected, and the newest is kept")
            elif not self.resuming:
                pairs, overlap = len(self.dev.pairs), self.dev.word_overlap()
                say(f"dev set {self.dev.name}, {pairs} pairs; word overlap: {overlap}")
                # Training may not improve it.
                self._save(state, 0, self.evaluate(state, 0).as_metrics())
            if first >= self.stop:
                say(f"already trained for {first} steps; give a higher --max-steps to continue")
            elif not self._out_of_patience(first):
                with StopSignal() as signal, step_bar(first, self.stop, is_primary()) as self._bar:
                    self._train(state, first, signal)

    def _train(self, state: TrainState, first: int, signal: StopSignal) -> None:
        key = jax.random.key(self.config.seed, impl=self.config.dropout_generator)
        self._speed = Speed(self.stop - first)
        self._skipped = 0
        self._check_contrast = first == 0
        unread: tuple[int, Batch, dict[str, Array]] | None = None
        profile = Profile(self.config, first, self.stop)
        for step, batch in self.batches.iterate(first, self.stop, timeout=self.config.data.timeout):
            state, metrics = self.train_step(state, sharding.place_batch(self.mesh, batch), key)
            if unread:
                self._read(*unread)
            done = step + 1
            self._bar.advance(self._bar.task_ids[0])
            if profile.step(done, state):
                self._speed.pause()
            unread = done, batch, metrics
            last = done == self.stop
            stopping = signal.asked()
            evaluate = self.dev is not None and (last or done % self.config.eval_every == 0)
            if evaluate or last or stopping or done % self.config.save_every == 0:
                # Before a step is saved it is known to be finite.
                self._read(*unread)
                unread = None
                scores = None
                if evaluate:
                    scores = self.evaluate(state, done).as_metrics()
                elif last and len(self.sample) > 1:
                    scores = self._look_at_text(state, done)
                self._save(state, done, scores)
                self._speed.pause()
            if stopping:
                self._stop_here(done, signal)
            if evaluate and self._out_of_patience(done):
                break
        self._write_means()
        # A signal may also come while the last step is evaluated; then nothing more may start.
        if signal.asked():
            self._stop_here(self._step, signal)
        self.checkpoints.wait()

    def _save(self, state: TrainState, step: int, scores: dict[str, float] | None) -> None:
        self.checkpoints.save(step, as_checkpoint(single_layers(self.mesh, state)), scores)
        self.callbacks.on_save(step)

    def _stop_here(self, step: int, signal: StopSignal) -> NoReturn:
        self.checkpoints.wait()
        by = "Ctrl-C" if signal.by_ctrl_c else "SIGTERM"
        say(f"stopped by {by}, step {step} is saved; the same command resumes")
        raise Interrupted if signal.by_ctrl_c else Stopped

    def _out_of_patience(self, step: int) -> bool:
        """Whether the last `patience` evaluations were not better than an earlier one."""
        if self.config.patience is None:
            return False
        out = False
        if is_primary():  # the log is complete on this process only
            lines = read_jsonl(self.workdir / METRICS)
            scores = [line.get(METRIC, -1.0) for line in lines if "dev_anisotropy" in line]
            since_best = len(scores) - 1 - scores.index(max(scores)) if scores else 0
            out = since_best >= self.config.patience
        out = bool(multihost_utils.broadcast_one_to_all(np.int32(out)))
        if out:
            say(f"step {step}  no better dev score in {self.config.patience} evaluations: stopped")
        return out

    def evaluate(self, state: TrainState, step: int) -> DevScore:
        """Returns the dev score of a state, logged under `step` and printed."""
        encoder = self._encoder(state)
        assert self.dev is not None  # the callers have checked
        score = self.dev.score(encoder.encode_block)
        if step == 0:  # one warning per run is enough
            warn_of_losses(encoder, name="dev sentences")
        assert score.cosines is not None  # `Development.score` has set them
        layers = self._layer_figures(state, self.dev) if self.config.eval_layers else {}
        self._log.write(step, {**score.as_metrics(), **score.diagnostics, **layers})
        if is_primary():
            keep_cosines(self.workdir, step, score.cosines)
        if score.collapsed:
            cosine = score.diagnostics["dev_anisotropy"]
            say(
                f"step {step}  collapsed: different dev sentences have a mean cosine of "
                f"{cosine:.3f}; this step cannot be the best"
            )
        else:
            say(f"step {step}  dev Spearman {score}")
        self.callbacks.on_evaluation(step, score)
        return score

    def _encoder(self, state: TrainState) -> SentenceEncoder:
        bank = BankEncoder(
            self.bank,
            single_layers(self.mesh, state.params["towers"]),
            self.tokenizer,
            self.serving_length,
            mesh=self.mesh,
            serving=self.serving,
        )
        return SentenceEncoder([bank])

    def _look_at_text(self, state: TrainState, step: int) -> dict[str, float]:
        """Returns the mean cosine of the sample's sentences, logged under `step` and printed."""
        cosine = anisotropy(self._encoder(state).encode_block(self.sample))
        collapsed = cosine > development.COLLAPSED
        figures = {"text_anisotropy": cosine} | ({"text_collapsed": 1.0} if collapsed else {})
        self._log.write(step, figures)
        meaning = (
            "; collapsed: the model cannot tell them apart: train longer, or start from a trained "
            "encoder"
        )
        say(
            f"step {step}  mean cosine of different sentences of the text: {cosine:.4f}"
            + meaning * collapsed
        )
        return figures

    def _layer_figures(self, state: TrainState, dev: Development) -> dict[str, float]:
        bank = Bank(self.bank.architecture, self.bank.num_towers, pooling=self.bank.pooling)
        params = jax.device_get(single_layers(self.mesh, state.params["towers"]))
        model = SavedModel(bank, params, self.tokenizer, self.serving_length, "this run")
        cross = self.config.model.cross
        crosses = self.config.objective.traits.crosses
        if not crosses or cross.mode == "off" or not cross.num_layers:
            cross = None  # no layer crosses in this run; use the default of `diagnose`
        sentences = list(dict.fromkeys(dev.pairs.first))[:INSPECTED]
        figures = layer_figures(model, sentences, cross=cross)
        return {f"dev_{name}": value for name, value in figures.items()}

    def _read(self, step: int, batch: Batch, metrics: dict[str, Array]) -> None:
        """Waits for the metrics of a step; logs means every `log_every` steps."""
        host = jax.device_get(metrics)
        finite, tokens, flops = (float(host.pop(name)) for name in ("finite", "tokens", "flops"))
        values = {name: float(value) for name, value in host.items()}
        self._speed.step(sentences=self.config.data.batch_size, tokens=tokens, flops=flops)
        self._step = step
        self._skipped = 0 if finite else self._skipped + 1
        if finite:
            self._log.add(values)
        else:
            self._save_bad_batch(step, batch, values)
        if step % self.config.log_every == 0:
            self._write_means()

    def _write_means(self) -> None:
        """Logs and prints the means since the last call, if a step was read since."""
        if not self._log.unwritten:
            return
        speeds = self._speeds()
        means = self._log.flush(self._step, **speeds)
        names = sorted(means.keys() - speeds.keys(), key=_loss_first)
        terms = "  ".join(f"{name} {means[name]:.4g}" for name in names)
        speed = f"{means['sentences_per_second']:.1f} sentences/s"
        speed += f"  {means['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in means:
            speed += f"  MFU {means['mfu']:.1%}"
        say(f"step {self._step}  {terms}  {speed}  ETA {self._eta()}")
        if self._check_contrast:
            self._check_contrast = False
            announce.warn_of_easy_contrast(self.config, means)
        self.callbacks.on_log(self._step, means)

    def _speeds(self) -> dict[str, float]:
        """Sentences per second, real tokens of their views per second, and MFU.

        MFU is a step's operations by `flops.step_flops` / (seconds * peak of all devices).
        """
        speed = self._speed
        speeds = {f"{name}_per_second": speed.per_second(name) for name in ("sentences", "tokens")}
        peak = peak_of_all(self.config, self.mesh)
        if peak:
            speeds["mfu"] = speed.per_second("flops") / peak
        return speeds

    def _eta(self) -> str:
        seconds = self._speed.seconds_left
        return "?" if seconds != seconds else str(timedelta(seconds=round(seconds)))

    def _save_bad_batch(self, step: int, batch: Batch, values: dict[str, float]) -> None:
        """Saves the batch of a step that is not finite; UserError unless it may be skipped."""
        terms = ", ".join(f"{name} = {value:g}" for name, value in values.items())
        file = save_batch(self.workdir, step, batch, self.tokenizer)
        message = f"step {step} is not finite ({terms}); its batch is saved in {file}"
        if self.config.not_finite == "skip" and self._skipped < STOP_AT:
            say(f"{message}; skipped")
            return
        good = self.checkpoints.newest_step()
        where = "no checkpoint was saved yet"
        if good is not None:
            where = f"the last good checkpoint is step {good} in {self.config.workdir}"
        raise UserError(
            f"{message}: {where}. Try a lower optimizer.learning_rate, optimizer.max_grad_norm = "
            "1.0 or more warm-up."
        )


def peak_of_all(config: Config, mesh: Mesh) -> float | None:
    """Peak operations per second of all devices together; None if unknown."""
    kind = mesh.devices.flat[0].device_kind
    each = flops.peak_flops(kind, config.model.compute_dtype)
    if config.peak_tflops is not None:
        each = config.peak_tflops * 1e12
    return each and each * mesh.devices.size


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
