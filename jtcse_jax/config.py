"""One run as data: frozen dataclasses, one per concern, every field documented and validated.

A file in `configs/` binds the name `config` to a `Config`; any field can be overridden on the
command line (`--data.batch-size 128`). `python -m jtcse_jax.train --help` prints every field.
"""

from dataclasses import dataclass
from typing import Literal

from jtcse_jax.architecture import Architecture, Cross, check_fields
from jtcse_jax.errors import UserError

SCRATCH = "scratch"


@dataclass(frozen=True)
class ModelConfig:
    """The bank of towers."""

    towers: tuple[str, ...] = ("bert-base-uncased", "bert-base-uncased")
    """Where each tower starts, one entry a tower: a Hugging Face folder or hub name, a workdir or
    exported folder of ours (NAME#K: its tower K), `package:NAME/FOLDER` (a folder of an installed
    Python package), or `scratch` (random weights of the shape `scratch`)."""
    scratch: Architecture = Architecture()
    """Shape of towers that start from scratch; ignored for others."""
    tokenizer: str | None = None
    """Folder or hub name; by default the first tower's. A tower from scratch without one gets a
    WordPiece tokenizer of `scratch.vocab_size` entries trained on the text."""
    lowercase: bool = True
    """Of a tokenizer trained on the text: upper and lower case are one."""
    pooling: Literal["cls", "mean"] | None = None
    """A tower's sentence vector: last hidden state at [CLS], or the mean over its tokens. By
    default that of the folders in `towers`; cls for scratch, and for a folder that names none."""
    serving_length: int | None = None
    """Longest sentence, in tokens, that the trained model reads when it is evaluated, encodes,
    searches or is exported. By default that of the first folder in `towers`; for scratch the
    longest that `scratch` allows. `data.max_len` is the length in training."""
    dropout: float = 0.1
    """Dropout of hidden states, rounded to a multiple of 2^-16 (0.00025 to 0.000244)."""
    attention_dropout: float = 0.1
    """Dropout of attention probabilities, rounded likewise."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the products; parameters, LayerNorm statistics, softmax and losses are float32."""
    cross: Cross = Cross()
    """jtcse: cross-attention between the towers."""

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
    """Training text: a file or glob with one sentence a line (plain, .gz, .xz), a .tsv of pairs
    (two views of a sentence), tfds:NAME:SPLIT:FIELD, hub:NAME:SPLIT:FIELD, or stdlib (the English
    of Python's own documentation)."""
    pairs: Literal["same", "adjacent", "repeat", "none"] = "same"
    """The two views of an item: one sentence twice (they differ by dropout), a sentence and the
    one after it, or a sentence and the same with some words repeated (ESimCSE); none: each
    sentence alone, for mlm. A .tsv brings its own pairs."""
    repeat_rate: float = 0.32
    """pairs = repeat: largest share of words repeated; two always may be. The second view keeps all
    tokens of the first, so it may be longer than max_len, up to row_length and the model's
    positions. If these leave too little room, fewer words are repeated."""
    max_len: int = 64
    """Longest sentence in training, in tokens, [CLS] and [SEP] included; the rest is cut and
    counted. The trained model reads `model.serving_length`."""
    batch_size: int = 64
    """Sentences in a batch, over all devices (two views of each)."""
    batches: Literal["random", "similar"] = "random"
    """similar: a batch groups sentences that the first tower finds similar at the start of the run,
    as hard negatives of each other; nearly equal ones (cosine above 0.9) are kept out of each
    other's groups. All sentences are encoded once before the first step."""
    random_share: float = 0.25
    """batches = similar: share of random sentences in a batch."""
    row_length: int | None = None
    """Tokens in a packed row (P), at least max_len; by default 64, or the longest view's if
    it has more: max_len, and with pairs = repeat its repeated words."""
    micro_batch: int | None = None
    """Sentences, over all devices, whose activations a step holds at a time; a divisor of
    batch_size. The loss and its gradient are those of the whole batch, for a second forward pass;
    None takes the batch at once."""
    slots: int | None = None
    """Most sentence views in a row (C); by default one for every ten tokens of it."""
    dev: str | None = None
    """Development set: FILE with sentence1<TAB>sentence2<TAB>score, an STS-B file or folder, or
    `builtin`. Without one nothing selects a best step and the newest is kept."""
    cache_dir: str = "~/.cache/jtcse_jax"
    """Where tokenised text is kept."""
    timeout: float = 600
    """Seconds to wait for a batch before the run ends with an error: its disk may hang."""

    def __post_init__(self):
        check_fields("data.", self)
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
                "data.batches = similar: pairs = none has no negatives, for which similar "
                "sentences are grouped; use random."
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
        if self.slots is not None and self.slots < 1:
            raise UserError(f"data.slots = {self.slots}: use at least 1.")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss."""

    name: Literal["simcse", "tncse", "jtcse", "distill", "mlm"] = "jtcse"
    """simcse: each tower alone; tncse: two towers without cross-attention; jtcse: with it;
    distill: learn a teacher's embeddings; mlm: masked language modelling, from scratch or on."""
    temperature: float = 0.05
    """Divides the cosines."""
    simcse_negatives: Literal["other_view", "all"] = "other_view"
    """simcse: negatives from the other view only, as SimCSE, or from both, as JTCSE's NCE."""
    mlp_head: bool = False
    """simcse: a training-only dense + tanh layer over the sentence vector."""
    nce_weight: float = 1.0
    """tncse, jtcse: weight of L_NCE."""
    icnce_weight: float = 1.0
    """tncse, jtcse: weight of L_ICNCE."""
    ictm_weight: float = 1.0
    """tncse, jtcse: weight of L_ICTM."""
    modulus_half: bool = True
    """Halve the modulus factor of L_ICTM, as JTCSE's scripts do and its formula does not."""

    teacher: str | None = None
    """distill: the model to learn from: a workdir, an exported folder, a Hugging Face folder or
    hub name, or an ensemble's description."""
    distillation: Literal["contrastive", "listwise"] = "contrastive"
    """distill: NCE(student, student) + NCE(student, teacher), or the teacher's ranking of the
    batch, which also fits a teacher of another width."""
    student_temperature: float = 0.025
    """distill, listwise: divides the student's cosines."""
    teacher_temperature: float = 0.0125
    """distill, listwise: divides the teacher's cosines."""
    mask_share: float = 0.15
    """mlm: share of the words to guess."""
    mask_token_id: int | None = None
    """mlm: id of the masking token; by default the tokenizer's."""

    def __post_init__(self):
        check_fields("objective.", self)
        for name in ("temperature", "student_temperature", "teacher_temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"objective.{name} = {getattr(self, name)}: must be above 0.")
        if not 0 < self.mask_share < 1:
            raise UserError(f"objective.mask_share = {self.mask_share}: choose between 0 and 1.")
        if (self.name == "distill") != (self.teacher is not None):
            raise UserError(
                f"objective.name = {self.name} and objective.teacher = {self.teacher}: distill "
                "needs a teacher, and nothing else takes one."
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW."""

    learning_rate: float = 1.3e-6
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: constant, or falling to zero at the last step."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    decay: Literal["all", "kernels"] = "all"
    """Decay every parameter (as JTCSE's scripts), or neither biases nor LayerNorms."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: float | None = None
    """Clip the global gradient norm; None does not clip."""

    def __post_init__(self):
        check_fields("optimizer.", self)
        # In float32 an update is then finite wherever the gradient is; the step relies on it.
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
    """Everything the run writes; a second start with the same workdir resumes."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = 42
    """Seeds batches, dropout and new weights; a run is a function of it."""
    epochs: int = 1
    """Passes over the text; max_steps overrides."""
    max_steps: int | None = None
    """Steps to train; a finished run started with more goes on."""
    eval_every: int = 100
    """Steps between evaluations on the dev set."""
    eval_layers: bool = False
    """Log E_CLS, attention on [CLS] and views' modulus ratio of 32 dev sentences; one process."""
    save_every: int = 100
    """Steps between checkpoints; an evaluation is always saved."""
    log_every: int = 10
    """Steps between lines of metrics."""
    wandb: str | None = None
    """Project of Weights & Biases that gets the metrics too; needs the package wandb."""
    profile: bool = False
    """Write a trace of ten steps into WORKDIR/profile, for TensorBoard or Perfetto."""
    peak_tflops: float | None = None
    """Peak 10^12 operations a second of a device, for the MFU; None looks up the device's."""
    not_finite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is not finite never changes the model: stop there, or skip the
    batch (ten in a row stop too). Either way the batch is saved in WORKDIR/not_finite."""
    force: bool = False
    """Resume in spite of another config, text or teacher than the workdir's."""
    keep: int = 2
    """Newest checkpoints kept, beside the best by dev score."""
    tower_devices: int = 1
    """Device groups the towers are spread over: 1, or the number of towers."""
    fsdp_devices: int = 1
    """Devices, of those that share a tower, that its parameters and their optimizer's state are
    split over: less memory on each, for a transfer of all parameters in every step."""
    dropout_generator: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """threefry2x32 gives the same masks on any number of devices; rbg may be faster."""
    deterministic: bool = False
    """On a GPU, forbid operations whose result varies from run to run; CPUs and TPUs have none."""

    def __post_init__(self):
        check_fields("", self)
        if "://" in self.workdir:
            raise UserError(f"workdir = {self.workdir}: mount the bucket and name its folder.")
        towers = len(self.model.towers)
        if self.objective.name in ("tncse", "jtcse") and towers < 2:
            raise UserError(
                f"objective.name = {self.objective.name} needs two towers or more, and "
                f"model.towers names {towers}: add one, or use objective.name = simcse."
            )
        if (self.objective.name == "mlm") != (self.data.pairs == "none"):
            raise UserError(
                f"objective.name = {self.objective.name} and data.pairs = {self.data.pairs}: mlm "
                "takes none, each sentence alone, and a contrastive objective takes pairs."
            )
        if self.data.batches == "similar" and SCRATCH in self.model.towers:
            raise UserError(
                "data.batches = similar groups sentences by the vectors of the start model, and "
                "model.towers starts from scratch: use random."
            )
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise UserError(f"peak_tflops = {self.peak_tflops}: must be above 0, or None.")
        if self.tower_devices not in (1, towers):
            choices = f"choose 1, or one a tower ({towers})"
            raise UserError(f"tower_devices = {self.tower_devices}: {choices}.")
        if self.fsdp_devices < 1:
            raise UserError(f"fsdp_devices = {self.fsdp_devices}: use at least 1.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed = {self.seed}: choose from 0 to 2**32 - 1.")
        for name in ("epochs", "max_steps", "eval_every", "save_every", "log_every", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} = {value}: use at least 1.")
