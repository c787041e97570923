"""The configuration of one run: what the model is, how it is trained, quantized and scored, and for how long.

Frozen dataclasses of plain values with `eval(repr(x)) == x`: the exported script bakes its config in by
writing the repr. Standard library only, so that sizing and `--help` never load torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from pgolf_model.checks import check_choices, check_fields, literal_options
from pgolf_model.errors import UserError

BITS_RANGE = (1, 8)  # fewest and most bits of a weight; 1 is binary, 2 is ternary


def code_limit(bits: int) -> int:
    """Largest code of a bitwidth; the smallest is its negative. One bit has the codes -1 and 1, without zero."""
    return max(1, (1 << (bits - 1)) - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The transformer: the challenge's 2026-03-17 baseline by default (17,059,912 parameters).

    From `rope_dims` on, every field is an element of a record (https://github.com/openai/parameter-golf); its default
    is the baseline's choice. Elements combine freely, except for the pairs that `_check_pairs` refuses. Their formulas
    are in attention.py, layers.py, blocks.py and embed.py.
    """

    vocab_size: int = 1024  # token ids, at most 65,536 (shards are uint16)
    num_layers: int = 9  # physical blocks; loops run some of them again
    model_dim: int = 512  # channels of the residual stream
    num_heads: int = 8  # query heads
    num_kv_heads: int = 4  # key and value heads (GQA); divides num_heads
    mlp_mult: float = 2.0  # MLP hidden channels / model_dim; any multiple that gives a whole number
    loop_start: int = 0  # first block of the looped range
    loop_end: int = 0  # one past its last block; equal to loop_start when nothing loops
    loop_repeats: int = 0  # extra passes over blocks [loop_start, loop_end)
    rope_base: float = 10_000.0  # rotary base frequency
    qk_gain_init: float = 1.5  # initial per-head gain on normalised queries
    logit_softcap: float = 30.0  # logits = c * tanh(logits / c)
    embed_init_std: float = 0.005  # token table, normal init
    rope_dims: int = 0  # leading channels of a head that rotary positions turn; 0 turns all (records: 16 of 64)
    ln_scale: bool = False  # a block's norms times 1 / sqrt(physical layer + 1)
    activation: Literal["relu2", "leaky_relu2", "swiglu"] = "relu2"  # leaky slope 0.5; swiglu has a third matrix
    resid_mix: bool = True  # blocks begin by mixing the embedding into the stream
    skips: Literal["plain", "gated", "none"] = "plain"  # how U-Net skips are added; each has its own weights and gates
    xsa_layers: int = 0  # number of last layers that remove a token's own value direction from its output (XSA)
    out_norm: bool = False  # RMS norm before the output projections of attention and MLP (ternary records)
    value_embed_dim: int = 0  # width of a token table that is added to the attention values ...
    value_embed_layers: tuple[int, ...] = ()  # ... of these physical layers
    value_residual: bool = False  # blend in the first block's values; in a looped record it cost 0.14 bpb
    smear: Literal["none", "channel", "gated"] = "none"  # blend in the embedding of the token before
    bigram_buckets: int = 0  # rows of a table of hashed token pairs; 0 is off (records: 1,536 to 10,240)
    bigram_dim: int = 128  # its width
    embed_rank: int = 0  # width of the token table, projected to and from model_dim; 0 is model_dim, not projected
    embed_buckets: int = 0  # rows of the token table, shared by tokens; 0 is one row each
    tied: bool = True  # the head is the token table; else a table of its own
    vocab_bias: bool = False  # a learned number per token, added to its score before the soft cap (ternary records)
    embed_init: Literal["normal", "overtone"] = "normal"  # overtone: singular values fall as rank ** -0.5
    matrix_init: Literal["uniform", "orthogonal"] = "uniform"  # of everything that is not a zero output projection
    attn_gate: Literal["none", "dense", "sparse"] = "none"  # a sigmoid per head; sparse reads gate_inputs channels
    gate_inputs: int = 12  # leading channels that the sparse gate and the gated smear read
    gate_scale: float = 1.0  # factor inside the attention gate's sigmoid
    parallel: Literal["none", "single", "lanes", "routed"] = "none"  # attention and MLP side by side, in 1 or 2 streams
    parallel_start: int = 0  # first physical layer that does so
    iteration_embeddings: bool = False  # looped blocks add a learned vector to their input, one per virtual slot
    num_experts: int = 0  # parts of the MLP, in looped blocks or, without a loop, in all; 0 is off
    experts_per_token: int = 0  # how many of these parts each token uses
    document_attention: bool = False  # a token attends to its own document only
    bos_id: int = 1  # token that begins a document; -1 when none does

    def __post_init__(self) -> None:
        check_choices(self)
        check_fields(self, "at least 1", lambda n: n >= 1, "vocab_size num_layers model_dim num_heads num_kv_heads")
        check_fields(self, "at most 65536 (shards are uint16)", lambda n: n <= 65_536, "vocab_size")
        if self.model_dim % self.num_heads:
            step = 2 * self.num_heads  # rotary embeddings want an even head_dim
            low = self.model_dim // step * step
            raise UserError(
                f"model_dim must be divisible by num_heads, got {self.model_dim} and {self.num_heads}",
                hint=f"nearest valid model_dim is {low or step} or {low + step}",
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads must be divisible by num_kv_heads, got {self.num_heads} and {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(
                f"head_dim = model_dim / num_heads must be even for rotary embeddings, got {self.head_dim}",
                hint="use another num_heads",
            )
        if not 0 < self.mlp_mult < inf or abs(self.mlp_mult * self.model_dim - self.mlp_dim) > 1e-6:
            raise UserError(
                f"mlp_mult * model_dim must be a whole positive number, got {self.mlp_mult} * {self.model_dim}"
            )
        if not 0 <= self.loop_start <= self.loop_end <= self.num_layers:
            raise UserError(
                "the looped range must satisfy 0 <= loop_start <= loop_end <= num_layers, got "
                f"[{self.loop_start}, {self.loop_end}) and {self.num_layers} layers"
            )
        check_fields(self, "at least 0", lambda n: n >= 0, "loop_repeats")
        if (self.loop_repeats > 0) != (self.loop_end > self.loop_start):
            raise UserError(
                "loop_repeats and the looped range must be set together, got "
                f"{self.loop_repeats} repeats of [{self.loop_start}, {self.loop_end})"
            )
        names = "rope_base qk_gain_init logit_softcap embed_init_std gate_scale"
        check_fields(self, "positive and finite", lambda x: 0 < x < inf, names)
        self._check_ranges()
        self._check_pairs()

    def _check_ranges(self) -> None:
        """Raise UserError for a field outside of its range."""
        uses_inputs = self.attn_gate == "sparse" or self.smear == "gated"
        for name, low, high in (
            ("rope_dims", 0, self.head_dim),
            ("xsa_layers", 0, self.num_layers),
            ("value_embed_dim", 0, inf),
            ("bigram_buckets", 0, inf),
            ("bigram_dim", 1, inf),
            ("embed_rank", 0, self.model_dim),
            ("embed_buckets", 0, self.vocab_size - 1),
            ("gate_inputs", 1, self.model_dim if uses_inputs else inf),
            ("parallel_start", 0, inf if self.parallel == "none" else self.num_layers - 1),
            ("num_experts", 0, self.mlp_dim),
            ("experts_per_token", min(1, self.num_experts), self.num_experts),
            ("bos_id", 0 if self.document_attention else -1, self.vocab_size - 1 if self.document_attention else inf),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name} must be in [{low}, {high}], got {getattr(self, name)}")

    def _check_pairs(self) -> None:
        """Raise UserError for fields that exclude each other."""
        if self.rope_dims % 2:
            raise UserError(
                f"rope_dims must be even, got {self.rope_dims}", hint=f"0 turns all {self.head_dim} channels"
            )
        layers = self.value_embed_layers
        if bool(layers) != (self.value_embed_dim > 0) or len(set(layers)) < len(layers):
            raise UserError(
                f"value_embed_dim and value_embed_layers (each layer once) must be set together, "
                f"got {self.value_embed_dim} and {layers}"
            )
        if layers and not 0 <= min(layers) <= max(layers) < self.num_layers:
            raise UserError(f"value_embed_layers must be in [0, {self.num_layers - 1}], got {layers}")
        if self.bigram_buckets == 1:
            raise UserError("bigram_buckets must be 0 or at least 2, got 1: the last is for tokens without a pair")
        if self.embed_buckets > 0 and self.embed_buckets**2 // 4 < self.vocab_size:
            raise UserError(
                f"embed_buckets can tell at most embed_buckets**2 / 4 tokens apart, got {self.embed_buckets} for "
                f"vocab_size {self.vocab_size}"
            )
        if self.num_experts and self.mlp_dim % self.num_experts:
            raise UserError(
                f"mlp_mult * model_dim must be divisible by num_experts, got {self.mlp_dim} and {self.num_experts}"
            )
        if self.out_norm and self.xsa_layers:
            raise UserError(
                "out_norm and xsa_layers exclude each other: where all values point one way, as for the first token, "
                "exclusive attention leaves rounding noise and the norm would blow it up",
                hint="set one of them to 0",
            )
        if self.iteration_embeddings and not self.loop_repeats:
            raise UserError(
                "iteration_embeddings tell the passes of a loop apart, got no loop", hint="set loop_repeats"
            )
        inside = self.loop_start < self.parallel_start < self.loop_end
        if self.parallel in ("lanes", "routed") and inside:
            raise UserError(
                f"two streams cannot begin inside a loop, got parallel_start {self.parallel_start} in "
                f"[{self.loop_start}, {self.loop_end})",
                hint="begin at its first block, behind it, or with parallel='single'",
            )

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        """Channels of all keys (or all values) of one block."""
        return self.head_dim * self.num_kv_heads

    @property
    def mlp_dim(self) -> int:
        """Hidden channels of the MLP."""
        return round(self.mlp_mult * self.model_dim)

    @property
    def virtual_layers(self) -> tuple[int, ...]:
        """The physical block that runs at each depth: the looped range appears 1 + loop_repeats times in a row."""
        loop = tuple(range(self.loop_start, self.loop_end))
        head, tail = tuple(range(self.loop_end)), tuple(range(self.loop_end, self.num_layers))
        return head + loop * self.loop_repeats + tail

    @property
    def num_skips(self) -> int:
        """U-Net skips: the first half of the virtual layers feeds the second half, last in first out."""
        return len(self.virtual_layers) // 2 if self.skips != "none" else 0

    def has_experts(self, layer: int) -> bool:
        """Whether the MLP of this physical layer is a mixture."""
        return self.num_experts > 0 and (not self.loop_repeats or self.loop_start <= layer < self.loop_end)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How weights are learned. Defaults are the challenge's baseline recipe, schedules as fractions of the run.

    A `..._schedule` is a tuple of (fraction of the run, multiplier) pairs: from that fraction on the quantity is so
    many times its own field; before the first pair it is that field.
    """

    batch_tokens: int = 524_288  # target tokens per optimizer step, over all ranks
    batch_schedule: tuple[tuple[float, float], ...] = ()  # rounded to whole sequences per rank
    seq_len: int = 1024  # tokens per sequence; divides batch_tokens
    seq_len_schedule: tuple[tuple[float, float], ...] = ()  # rounded to whole tokens
    micro_batch_tokens: int = 65_536  # most tokens in one forward pass on one rank; the rest accumulates
    loader: Literal["sequential", "shuffled", "strided", "packed"] = "sequential"  # see data/windows.py
    matrix_lr: float = 0.04  # Muon, attention and MLP matrices
    embed_lr: float = 0.05  # AdamW, token tables
    head_lr: float = 0.0  # AdamW, `head.weight` of an untied model; 0 is embed_lr
    scalar_lr: float = 0.04  # AdamW, gains, scales, mixes, gates
    matrix_weight_decay: float = 0.0  # decoupled, per unit of learning rate
    embed_weight_decay: float = 0.0
    scalar_weight_decay: float = 0.0
    weight_decay_taper_start: float = 1.0  # from this fraction of the run the matrices' decay falls linearly ...
    weight_decay_final: float = 1.0  # ... to so many times matrix_weight_decay at the end
    muon_momentum: float = 0.95
    muon_momentum_start: float = 0.85  # momentum rises linearly from here ...
    muon_momentum_warmup: float = 0.04  # ... over this fraction of the run
    muon_iterations: int = 5  # Newton-Schulz steps
    muon_polynomial: Literal["quintic", "polar_express"] = "quintic"  # one polynomial for all steps, or one for each
    muon_normalize_rows: bool = False  # divide each row of an update by its norm before it is orthogonalised (MuonEq-R)
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    embed_beta2: float = 0.0  # token tables and head; 0 is adam_beta2
    scalar_beta2: float = 0.0  # 0 is adam_beta2
    adam_eps: float = 1e-8
    grad_clip: float = 0.0  # global norm; 0 is off
    warmdown_fraction: float = 0.09  # last part of the run in which the rate falls linearly ...
    min_lr_fraction: float = 0.0  # ... to this fraction of its peak
    ema_decay: float = 0.0  # scored and shipped weights are this moving average; 0 is off
    swa_start: float = 0.0  # ... or the mean of every swa_every-th step's below this lr multiplier; 0 is off
    swa_every: int = 50  # optimizer steps
    loop_at: float = 0.0  # fraction of the run at which looped blocks begin to loop
    qat_start: float = 1.0  # from this fraction on forward passes see rounded weights; 1 is never, 0 always
    reserve_seconds: float = 0.0  # training ends this long before its budget of seconds, to leave time to quantize
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # matmul dtype under autocast; master weights are float32
    compile: bool = True  # torch.compile on CUDA; CPU runs are too short for it to pay off

    def __post_init__(self) -> None:
        names = "batch_tokens seq_len micro_batch_tokens muon_iterations swa_every"
        check_fields(self, "at least 1", lambda n: n >= 1, names)
        if self.batch_tokens % self.seq_len:
            low = self.batch_tokens // self.seq_len * self.seq_len
            raise UserError(
                f"batch_tokens must be divisible by seq_len, got {self.batch_tokens} and {self.seq_len}",
                hint=f"nearest valid batch_tokens is {low or self.seq_len} or {low + self.seq_len}",
            )
        check_fields(self, "positive and finite", lambda x: 0 < x < inf, "matrix_lr embed_lr scalar_lr adam_eps")
        names = "matrix_weight_decay embed_weight_decay scalar_weight_decay weight_decay_final head_lr grad_clip"
        check_fields(self, "at least 0 and finite", lambda x: 0 <= x < inf, f"{names} reserve_seconds")
        names = "muon_momentum muon_momentum_start ema_decay adam_beta1 adam_beta2 embed_beta2 scalar_beta2"
        check_fields(self, "in [0, 1)", lambda x: 0 <= x < 1, names)
        names = "muon_momentum_warmup warmdown_fraction min_lr_fraction weight_decay_taper_start"
        check_fields(self, "in [0, 1]", lambda x: 0 <= x <= 1, f"{names} swa_start loop_at qat_start")
        if self.ema_decay and self.swa_start:
            raise UserError(
                f"ema_decay and swa_start exclude each other, got {self.ema_decay} and {self.swa_start}",
                hint="set one to 0",
            )
        for name in ("batch_schedule", "seq_len_schedule"):
            pairs = getattr(self, name)
            times = [fraction for fraction, _ in pairs]
            if times != sorted(set(times)) or not all(0 <= at < 1 and 0 < factor < inf for at, factor in pairs):
                raise UserError(f"{name} needs rising fractions in [0, 1) with positive multipliers, got {pairs}")
        for name, choices in literal_options(TrainConfig).items():
            if getattr(self, name) not in choices:
                listed = ", ".join(map(repr, choices[:-1]))
                raise UserError(f"{name} must be {listed} or {choices[-1]!r}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantConfig:
    """How trained weights become integers: bits per role and depth, clipped at a multiple of a row's deviation.

    A tuple of bitwidths or clips is stretched over the physical layers: one entry serves all of them, two entries
    the first and the second half, num_layers entries one layer each.

    With `target_bytes` a solver chooses the steps, and so the clips, so that code and model fill the target; the bits
    then only bound the codes.
    """

    embed_bits: int = 8
    attn_bits: tuple[int, ...] = (6,)
    mlp_bits: tuple[int, ...] = (6,)
    embed_clip_sigmas: float = 20.0  # clip at this many row standard deviations (parameter-golf PR #1394)
    attn_clip_sigmas: tuple[float, ...] = (12.85,)
    mlp_clip_sigmas: tuple[float, ...] = (12.85,)
    method: Literal["round", "gptq"] = "round"  # to the nearest code, or with error feedback under the Hessian
    quantizer: Literal["uniform", "trellis4", "trellis8"] = "uniform"  # trellis: dependent quantization, 4 or 8 states
    group_size: int = 0  # columns that share a scale; 0 is the whole row
    calibration: Literal["train", "generate"] = "train"  # Hessians from training shards, or from the model's own text
    calibration_tokens: int = 65_536  # over all ranks; not read when nothing needs calibration
    column_plan: bool = False  # GPTQ stores an order and a step gain of every column: 5 bits each, fewer for the codes
    damping: float = 0.01  # added to the Hessian's diagonal, as a share of its mean (GPTQ)
    rate_weight: float = 0.0  # squared steps of error that one bit is worth; ln(4)/12 = 0.1155 for fine steps
    lowrank_rank: int = 0  # rank of the low-rank correction ...
    lowrank_tensors: int = 0  # ... of this many matrices, those with the largest error (LQER)
    scalar_format: Literal["fp16", "fp8"] = "fp16"  # gains, scales, mixes; fp8 is e4m3
    target_bytes: int = 0  # of code and model; 0: the bits and clips above are taken as they are
    max_loss_jump: float = 0.0  # most nats that quantizing a role below 8 bits may cost; above, finer steps; 0 is off
    curve_bytes: tuple[int, ...] = ()  # more targets: the same weights packed and scored at each

    def __post_init__(self) -> None:
        low, high = BITS_RANGE
        wanted = f"in [{low}, {high}]"
        check_fields(self, wanted, lambda bits: low <= bits <= high, "embed_bits")
        check_fields(self, wanted, lambda many: many and all(low <= b <= high for b in many), "attn_bits mlp_bits")
        check_fields(self, "positive", lambda clip: clip > 0, "embed_clip_sigmas")
        names = "attn_clip_sigmas mlp_clip_sigmas"
        check_fields(self, "positive", lambda many: many and all(clip > 0 for clip in many), names)
        check_choices(self)
        check_fields(self, "at least 0", lambda n: n >= 0, "group_size lowrank_rank lowrank_tensors target_bytes")
        check_fields(self, "at least 0 and finite", lambda x: 0 <= x < inf, "damping rate_weight max_loss_jump")
        check_fields(self, "at least 1", lambda n: n >= 1, "calibration_tokens")
        check_fields(self, "positive", lambda many: all(target > 0 for target in many), "curve_bytes")

    @property
    def states(self) -> int:
        """States of the quantizer; 1 rounds every weight alone."""
        return {"uniform": 1, "trellis4": 4, "trellis8": 8}[self.quantizer]

    @property
    def needs_calibration(self) -> bool:
        """True when quantizing looks at data."""
        return bool(self.method == "gptq" or self.target_bytes or self.max_loss_jump or self.curve_bytes)

    def group(self, cols: int) -> int:
        """Columns that share a scale in a matrix of so many; 0, the whole row, where groups do not divide them."""
        return self.group_size if self.group_size and cols % self.group_size == 0 else 0

    def bits(self, role: str, layer: int, num_layers: int) -> int:
        """Bits per weight of a `role` matrix in physical `layer`; the embedding ignores the layer."""
        if role == "embed":
            return self.embed_bits
        groups = self.attn_bits if role == "attn" else self.mlp_bits
        return groups[layer * len(groups) // num_layers]

    def clip_sigmas(self, role: str, layer: int, num_layers: int) -> float:
        """Clip point, in row standard deviations, of a `role` matrix in physical `layer`; grouped as `bits` is."""
        if role == "embed":
            return self.embed_clip_sigmas
        groups = self.attn_clip_sigmas if role == "attn" else self.mlp_clip_sigmas
        return groups[layer * len(groups) // num_layers]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """How the shipped model is scored."""

    seq_len: int = 1024  # disjoint windows of the validation stream
    batch_tokens: int = 65_536  # tokens per forward pass on one rank
    max_tokens: int = 0  # score only so many leading tokens (proxies); 0 scores all of them

    def __post_init__(self) -> None:
        check_fields(self, "at least 0", lambda n: n >= 0, "max_tokens")
        if self.seq_len < 1 or self.batch_tokens < self.seq_len:
            raise UserError(
                f"eval batch_tokens must be at least seq_len >= 1, got {self.batch_tokens} and {self.seq_len}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """When training ends: after `steps` optimizer steps or `seconds` of training, whichever comes first.

    0 means no limit of that kind. A step budget makes a run a pure function of its spec; seconds are the
    challenge's own measure.
    """

    steps: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 <= self.seconds < inf or not (self.steps or self.seconds):
            raise UserError(f"a budget needs steps or seconds above 0, got {self.steps} and {self.seconds}")

    def progress(self, step: int, elapsed_seconds: float) -> float:
        """Fraction of the run that is over, in [0, 1]: the larger of the two shares."""
        by_steps = step / self.steps if self.steps else 0.0
        by_seconds = elapsed_seconds / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_steps, by_seconds))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything one run depends on, except where its data lies and what it runs on."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    budget: Budget = field(default_factory=lambda: Budget(seconds=600.0))
    seed: int = 1337

    def __post_init__(self) -> None:
        check_fields(self, "in [0, 2**31)", lambda n: 0 <= n < 2**31, "seed")
