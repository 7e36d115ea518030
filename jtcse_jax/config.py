"""The config of one run: frozen dataclasses, one per concern; every field is checked.

A file in `configs/` binds the name `config` to a `Config`. The command line can override any field
(`--data.batch-size 128`). `python -m jtcse_jax.train --help` prints every field.
"""

from dataclasses import dataclass
from typing import Literal

from jtcse_jax.architecture import Architecture, Cross, Pooling, check_choice, check_fields
from jtcse_jax.errors import UserError, check_counts
from jtcse_jax.traits import TRAITS, Traits

SCRATCH = "scratch"


@dataclass(frozen=True)
class ModelConfig:
    """The bank of towers."""

    towers: tuple[str, ...] = ("bert-base-uncased", "bert-base-uncased")
    """Where each tower starts, one entry per tower: a Hugging Face folder or hub name, a workdir or
    exported folder of this project (NAME#K is its tower K), `package:NAME/FOLDER` (a folder of an
    installed Python package), or `scratch` (random weights, in the shape of model.scratch). A
    Hugging Face model may be a BERT (also multilingual), RoBERTa, XLM-R, CamemBERT, DistilBERT,
    MPNet, ELECTRA or ModernBERT."""
    scratch: Architecture = Architecture()
    """Shape of towers that start from scratch; ignored for all others."""
    tokenizer: str | None = None
    """Tokenizer, a folder or hub name; by default the first tower's. Towers from scratch get by
    default a WordPiece tokenizer with `scratch.vocab_size` entries, trained on the text."""
    lowercase: bool = True
    """Whether a tokenizer that is trained on the text ignores case."""
    pooling: Pooling | None = None
    """Sentence vector of a tower: the last hidden state at [CLS], the mean over its tokens, or
    another pooling of sentence-transformers. By default the pooling of the folders in `towers`, or
    cls if they name none; cls for scratch."""
    serving_length: int | None = None
    """Longest sentence, in tokens, that the trained model reads when it is evaluated, encodes,
    searches or is exported. By default that of the first folder in `towers`, or for scratch the
    longest that `scratch` allows. The length in training is `data.max_len`."""
    dropout: float = 0.1
    """Dropout rate of hidden states, rounded to a multiple of 2^-16 (0.00025 becomes 0.000244)."""
    attention_dropout: float = 0.1
    """Dropout rate of attention probabilities, rounded likewise."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of matrix products. Parameters, LayerNorm statistics, softmax and losses are
    float32."""
    cross: Cross = Cross()
    """Cross-attention between the towers; only for objective.name = jtcse."""

    def __post_init__(self):
        if isinstance(self.towers, str):
            raise UserError(f'model.towers = {self.towers!r}: write ("{self.towers}",), a tuple.')
        check_fields("model.", self)
        if not self.towers:
            raise UserError("model.towers is empty: name at least one tower.")
        if SCRATCH in self.towers and set(self.towers) != {SCRATCH}:
            raise UserError(
                f"model.towers = {list(self.towers)} mixes `scratch` with trained towers: "
                "start all from scratch or none."
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name} = {getattr(self, name)}: choose from [0, 1).")
            if 0 < getattr(self, name) <= 2**-17:
                raise UserError(
                    f"model.{name} = {getattr(self, name)} rounds to 0, the nearest multiple of "
                    "2^-16: use 0, or at least 7.63e-6."
                )
        if self.serving_length is not None and self.serving_length < 3:
            raise UserError(
                f"model.serving_length = {self.serving_length}: use at least 3 ([CLS], word, "
                "[SEP])."
            )


@dataclass(frozen=True)
class DataConfig:
    """Text, batches and the development set."""

    source: str = ""
    """Training text: a file or glob with one sentence per line (plain, .gz, .xz), a .tsv of pairs
    (two views of a sentence), a table (see `columns`), tfds:NAME:SPLIT:FIELD,
    hub:NAME:SPLIT:FIELD (also of a folder that `datasets` saved), or stdlib (the English text of
    Python's own documentation). `-` and other pipes are copied to a temporary file."""
    columns: tuple[str, ...] = ()
    """Columns of a table in `source` (.csv, .tsv with a header, .jsonl, .json, .parquet, .arrow):
    one of sentences, two of pairs, or more: anchor, positive, hard negatives."""
    positives: int = 1
    """Number of columns after the anchor that are positives; those after them are hard negatives.
    An epoch takes each line once, with one of its positives, and the next epoch with the next one.
    So two positives of an anchor are never in one batch; as many epochs use all of them."""
    pairs: Literal["same", "adjacent", "repeat", "none"] = "same"
    """The views of an item. same: the sentence twice (dropout makes them differ), or all columns of
    a pair; adjacent: a sentence and the next one; repeat: a sentence and a copy with some words
    repeated (ESimCSE); none: each sentence once, for mlm."""
    repeat_rate: float = 0.32
    """pairs = repeat: largest share of words to repeat; up to two words may always be repeated. The
    second view may be longer than max_len; it repeats fewer words where the row has no room."""
    max_len: int = 64
    """Longest sentence in training, in tokens, including [CLS] and [SEP]. Longer sentences are cut,
    and the run prints how many. The trained model reads `model.serving_length` tokens."""
    batch_size: int = 64
    """Sentences in a batch, over all devices; each has two views, and any hard negatives."""
    batches: Literal["random", "similar"] = "random"
    """random, or similar: a batch groups sentences that the first tower finds similar, which
    are hard negatives; near-duplicates (cosine above 0.9) are kept apart. All sentences are encoded
    once before the first step."""
    random_share: float = 0.25
    """batches = similar: share of the sentences in a batch that are drawn at random."""
    row_length: int | None = None
    """Tokens in a packed row (P), at least max_len; by default 64, or the longest view."""
    micro_batch: int | None = None
    """Number of sentences, over all devices, whose activations are in memory at a time; must divide
    batch_size. Loss and gradient stay those of the batch; the price is a second forward pass."""
    slots: int | None = None
    """Largest number of sentence views in a row (C); by default one per ten tokens."""
    dev: str | None = None
    """Development set: a file of scored pairs as `evaluate --sts` reads it, an STS-B folder, or
    `builtin`. Without one no best step is selected, and the newest is kept."""
    cache_dir: str = "~/.cache/jtcse_jax"
    """Folder for tokenised text."""
    timeout: float = 600
    """Seconds to wait for a batch before the run ends with an error (the disk may hang)."""

    def __post_init__(self):
        check_fields("data.", self)
        check_counts("data.", self, ("positives", "slots"))
        if self.batch_size < 2:
            raise UserError(
                f"data.batch_size = {self.batch_size}: a contrastive loss needs other sentences "
                "as negatives, use at least 2."
            )
        if self.max_len < 3:
            raise UserError(f"data.max_len = {self.max_len}: use at least 3 ([CLS], word, [SEP]).")
        if not 0 <= self.repeat_rate <= 1:
            raise UserError(f"data.repeat_rate = {self.repeat_rate}: choose from 0 to 1.")
        if self.batches == "similar" and self.pairs == "none":
            raise UserError(
                "data.batches = similar: with pairs = none there are no negatives, so similar "
                "sentences need no grouping; use random."
            )
        if not 0 <= self.random_share < 1:
            raise UserError(f"data.random_share = {self.random_share}: choose from [0, 1).")
        if not 0 < self.timeout <= 1e9:
            raise UserError(f"data.timeout = {self.timeout}: use seconds above 0, to 1e9.")
        if self.row_length is not None and self.row_length < self.max_len:
            raise UserError(
                f"data.row_length = {self.row_length} is below data.max_len = {self.max_len}: a "
                "row must hold the longest sentence."
            )
        if self.micro_batch is not None and (
            self.micro_batch < 1 or self.batch_size % self.micro_batch
        ):
            raise UserError(
                f"data.micro_batch = {self.micro_batch} does not divide data.batch_size = "
                f"{self.batch_size}: choose a divisor, or None."
            )


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss."""

    name: str = "jtcse"
    """simcse: each tower on its own; tncse: two or more towers without cross-attention; jtcse: two
    or more with it; distill: learn a teacher's embeddings; mlm: masked language modelling, from
    scratch or from trained towers."""
    temperature: float = 0.05
    """Cosines are divided by this number."""
    simcse_negatives: Literal["other_view", "all"] = "other_view"
    """simcse: negatives from the other view only, as in SimCSE, or from both views, as in the NCE
    of JTCSE."""
    mlp_head: bool = False
    """simcse: add a dense + tanh layer over the sentence vector, in training only."""
    nce_weight: float = 1.0
    """tncse, jtcse: weight of L_NCE."""
    icnce_weight: float = 1.0
    """tncse, jtcse: weight of L_ICNCE."""
    ictm_weight: float = 1.0
    """tncse, jtcse: weight of L_ICTM."""
    modulus_half: bool = True
    """Halve the modulus factor of L_ICTM. JTCSE's scripts do this; its formula does not."""
    matryoshka: tuple[int, ...] = ()
    """All but mlm: sum the loss over the first d components of the vectors, for each d of this list
    (such as 384 256 128 64), so that vectors cut to d components (--truncate-dim) stay good."""
    teacher: str | None = None
    """distill: the model to learn from: a workdir, an exported folder, a Hugging Face folder or
    hub name, a sum of these (`"runs/a + 0.5 * runs/b"`), or the JSON file of one."""
    distillation: Literal["contrastive", "listwise"] = "contrastive"
    """distill: contrastive is NCE(student, student) + NCE(student, teacher); listwise learns the
    teacher's ranking of the batch and also works with a teacher of another width."""
    student_temperature: float = 0.025
    """distill, listwise: the student's cosines are divided by this number."""
    teacher_temperature: float = 0.0125
    """distill, listwise: the teacher's cosines are divided by this number."""
    mask_share: float = 0.15
    """mlm: share of words that the model must guess."""
    mask_token_id: int | None = None
    """mlm: id of the mask token; by default the tokenizer's."""

    def __post_init__(self):
        check_fields("objective.", self)
        check_choice("objective.name", self.name, TRAITS)
        for name in ("temperature", "student_temperature", "teacher_temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"objective.{name} = {getattr(self, name)}: must be above 0.")
        if not 0 < self.mask_share < 1:
            raise UserError(f"objective.mask_share = {self.mask_share}: choose between 0 and 1.")
        cuts = self.matryoshka
        usable = self.traits.embeds and not self.mlp_head
        if cuts and (min(cuts) < 1 or len({*cuts}) < len(cuts) or not usable):
            raise UserError(
                f"objective.matryoshka = {cuts}: list different numbers above 0, without mlp_head "
                "and not for mlm, whose losses have no sentence vectors."
            )
        if self.traits.needs_teacher != (self.teacher is not None):
            raise UserError(
                f"objective.name = {self.name} and objective.teacher = {self.teacher}: distill "
                "needs a teacher, and no other objective takes one."
            )

    @property
    def traits(self) -> Traits:
        """What a run must know about this objective."""
        return TRAITS[self.name]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW."""

    learning_rate: float = 1.3e-6
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or decreasing to zero at the last step (linear or
    cosine)."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    decay: Literal["all", "kernels"] = "all"
    """all: decay every parameter, as JTCSE's scripts do; kernels: all but biases and LayerNorms."""
    b1: float = 0.9
    """Decay rate of the first moment."""
    b2: float = 0.999
    """Decay rate of the second moment."""
    eps: float = 1e-8
    """Added to the square root of the second moment."""
    max_grad_norm: float | None = None
    """Clip the global gradient norm to this value; None does not clip."""

    def __post_init__(self):
        check_fields("optimizer.", self)
        # With these limits a finite gradient gives a finite float32 update; the step relies on it.
        for name in ("learning_rate", "eps"):
            if not 1e-20 <= getattr(self, name) <= 1e30:
                raise UserError(f"optimizer.{name} = {getattr(self, name)}: use 1e-20 to 1e30.")
        for name, most in (("warmup_steps", 10**9), ("weight_decay", 1e6)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"optimizer.{name} = {getattr(self, name)}: use 0 to {most:g}.")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) <= 0.999999:
                raise UserError(f"optimizer.{name} = {getattr(self, name)}: use 0 to 0.999999.")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise UserError(
                f"optimizer.max_grad_norm = {self.max_grad_norm}: must be above 0, or None."
            )


@dataclass(frozen=True)
class Config:
    """One training run."""

    workdir: str = "runs/jtcse"
    """Folder for everything the run writes. The same command with the same workdir resumes."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = 42
    """Seed of batches, dropout and new weights; it determines the run."""
    epochs: int = 1
    """Passes over the text; ignored if max_steps is set."""
    max_steps: int | None = None
    """Steps to train. A finished run continues if it is started with more."""
    eval_every: int = 100
    """Steps between evaluations on the dev set."""
    patience: int | None = None
    """Stop when this many evaluations in a row have no better dev score; None trains to the end."""
    eval_layers: bool = False
    """At each evaluation also log, for 32 dev sentences, E_CLS, the attention on [CLS] and the
    ratio of the two views' norms; runs on one process only."""
    save_every: int = 100
    """Steps between checkpoints. Every evaluated step is saved too."""
    log_every: int = 10
    """Steps between two lines of metrics."""
    wandb: str | None = None
    """Also log the metrics to this project of Weights & Biases; needs the package wandb."""
    profile: bool = False
    """Write a trace of ten steps to WORKDIR/profile, for TensorBoard or Perfetto."""
    peak_tflops: float | None = None
    """Peak speed of one device, in 10^12 operations per second, for the MFU; None looks it up."""
    not_finite: Literal["stop", "skip"] = "stop"
    """If a loss or gradient is not finite, the model stays unchanged; then stop, or skip the batch
    (ten in a row stop the run too). Either way the batch is saved in WORKDIR/not_finite."""
    force: bool = False
    """Resume even if the config, text, dev set or teacher differs from the workdir's."""
    keep: int = 2
    """Number of newest checkpoints to keep, besides the best by dev score."""
    tower_devices: int = 1
    """Groups of devices over which the towers are split: 1, or the number of towers."""
    fsdp_devices: int = 1
    """Number of devices over which a tower's parameters and optimizer state are split. This saves
    memory on each device; every step then transfers all parameters once."""
    dropout_generator: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """threefry2x32 draws the same masks on any number of devices; rbg may be faster."""
    deterministic: bool = False
    """On a GPU, forbid operations whose result varies between runs; CPUs and TPUs have none."""

    def __post_init__(self):
        check_fields("", self)
        if "://" in self.workdir:
            raise UserError(f"workdir = {self.workdir}: mount the bucket and name its folder.")
        towers = len(self.model.towers)
        if towers < self.objective.traits.min_towers:
            raise UserError(
                f"objective.name = {self.objective.name} needs two towers or more, and "
                f"model.towers names {towers}: add one, or use objective.name = simcse."
            )
        if self.objective.traits.embeds == (self.data.pairs == "none"):
            raise UserError(
                f"objective.name = {self.objective.name} and data.pairs = {self.data.pairs}: mlm "
                "needs data.pairs = none, and every other objective needs pairs."
            )
        if self.data.batches == "similar" and SCRATCH in self.model.towers:
            raise UserError(
                "data.batches = similar groups sentences by the vectors of the start model, but "
                "model.towers starts from scratch: use random."
            )
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise UserError(f"peak_tflops = {self.peak_tflops}: must be above 0, or None.")
        if self.tower_devices not in (1, towers):
            choices = f"choose 1, or one per tower ({towers})"
            raise UserError(f"tower_devices = {self.tower_devices}: {choices}.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed = {self.seed}: choose from 0 to 2**32 - 1.")
        counts = ("epochs", "max_steps", "eval_every", "save_every", "log_every", "keep")
        check_counts("", self, (*counts, "patience", "fsdp_devices"))
