"""The configuration of a run as frozen dataclasses: every field, its unit and its meaning.

YAML is composed by Hydra (`conf.compose`), converted strictly into these classes and checked (`conf.rules.validate`)
before torch is imported. Defaults live in the YAML groups beside this file, not here: a field without a value there is
an error. A `Raw...Config` is a section as it was asked for, where `None` may stand for "derived" (what from is said at
the field); `conf.derived.derive.resolve` makes the `...Config` of it, in whose type those fields are never `None`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stack = Literal["encoder", "decoder"]
SemanticsName = Literal["mesh_tf", "flaxformer", "hf", "hf_4", "paper"]
SecondPolicy = Literal["all", "none", "threshold", "random"]
PaddingName = Literal["semantics", "ignored", "downweighted"]
DefectsName = Literal["mended", "reproduced"]
RouterPrecision = Literal["fp32", "activation"]
CapacityName = Literal["bounded", "dropless"]
CompileMode = Literal["off", "blocks", "model"]
Ffn = Literal[
    "relu", "gelu", "gelu_erf", "silu", "gated_relu", "gated_gelu", "gated_gelu_erf", "gated_silu"
]  # fmt: skip
ScheduleName = Literal["rsqrt", "cosine", "wsd", "linear", "constant"]
WarmupShape = Literal["linear", "flat"]
Precision = Literal["bf16", "fp32"]
LogitScale = Literal["width", "one"]
BadRowsName = Literal["refuse", "skip"]
PackingName = Literal["concat", "document"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RawModelConfig:
    """A T5 encoder-decoder (arXiv 1910.10683); which feed-forward layers are expert banks is in `MoeConfig`."""

    preset: str  # the file of conf/model/ that the sizes are from; a run's default name starts with it
    vocab_size: int  # ids the model knows; padded to a multiple of 128 whatever the layout, padding logits masked
    d_model: int  # width of embeddings and of the residual stream
    d_ff: int  # width inside a feed-forward layer, of each expert too
    d_kv: int  # width of one attention head
    num_heads: int  # of every attention layer
    num_encoder_layers: int  # layers of the encoder
    num_decoder_layers: int  # layers of the decoder
    ffn: Ffn  # feed-forward layers and experts; T5 v1.1: gated_gelu; gelu in its tanh form, gelu_erf the exact one
    tie_embeddings: bool  # tied: logits = decoder output @ embedding.T; untied: own output matrix
    share_embeddings: bool  # one embedding for both stacks; false, untied only: one each, as in transformers 5's Switch
    logit_scale: LogitScale | None  # width: decoder output * d_model**-0.5 before the logits; None: width if tied
    relative_buckets: int  # position biases of an attention head, near and far together (T5)
    relative_max_distance: int  # tokens, from which on all distances share a bucket
    dropout: float  # residual, embedding and feed-forward dropout
    attention_dropout: float  # on attention weights; above 0 takes the unfused path
    norm_epsilon: float  # added to the mean square in RMS norms
    init_scale: float  # variance scale s of sqrt(s / fan_in); the Switch paper uses 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class RawMoeConfig:
    """Routing and experts (Switch Transformer, arXiv 2101.03961, section 2)."""

    semantics: SemanticsName  # whose rules of grouping, capacity, dropping and initialisation hold: docs/routing.md
    router: str  # how tokens find experts; which ones a semantics defines: docs/routing.md
    decoder_router: str | None  # None: `router`, but switch where that looks ahead (expert_choice, switch_max)
    top_k: int | None  # choices a token may try; None: 1 (switch, switch_max), 2 (top_2), 4 (ntlb)
    second_policy: SecondPolicy  # top_2 of mesh_tf: which second choices are kept; random in training only, else all
    second_threshold: float  # of the second gate; random keeps with probability gate / threshold
    second_loss_weight: float  # top_2 of mesh_tf: weight of a balancing loss over second choices (reference: 0 or 0.5)
    padding: PaddingName  # ignored, downweighted: flaxformer's masked and scatter router with ignored padding
    defects: DefectsName  # reproduced: the reference to the letter; mended: without the defects docs/routing.md lists
    router_precision: RouterPrecision  # activation: product, jitter, softmax, arg max and gate as train.precision says
    num_experts: int  # experts of one layer
    sparse_every: int  # every how many layers one holds experts (0: none); which: by the rule of the semantics
    decoder_sparse_every: int | None  # the same of the decoder; None: sparse_every
    capacity: CapacityName  # bounded by the fields below; dropless: a place for every choice, whatever the load
    capacity_factor: float  # slots of all experts per token of a group, in training
    eval_capacity_factor: float  # capacity_factor in evaluation
    min_expert_capacity: int  # slots of an expert in one group, at least; under hf the slots themselves
    group_sequences: int | None  # whole sequences per routing group; None: by the rule of the semantics
    jitter: float  # router input multiplied by U(1-jitter, 1+jitter) in training
    aux_loss_weight: float  # of the load-balancing loss (the paper: 0.01)
    z_loss_weight: float  # under mesh_tf its effective weight is z_loss_weight * aux_loss_weight
    expert_dropout: float  # inside experts, instead of model.dropout (the paper fine-tunes with 0.4)


@dataclass(frozen=True, kw_only=True, slots=True)
class RawDataConfig:
    """Where text comes from and how it becomes pairs of inputs and targets."""

    source: str  # where documents come from; a row of conf.sources
    files: tuple[str, ...]  # source=text: globs of text, JSON, Parquet or Arrow; source=shards: directories
    validation_files: tuple[str, ...]  # empty: `validation_fraction` of the documents, chosen by hash
    validation_fraction: float  # of the documents, held out
    text_field: str  # of JSONL, Parquet, Arrow and hub records
    bad_rows: BadRowsName  # rows without usable text: refuse the first, or skip and count them
    hub_path: str | None  # source=hub: dataset name, e.g. allenai/c4
    hub_name: str | None  # dataset configuration, e.g. en
    hub_revision: str | None  # commit of the dataset
    hub_split: str  # which split of the dataset trains
    hub_validation_split: str | None  # source=hub; None: documents held out of the training split
    hub_files: tuple[str, ...]  # local files read through the same streaming code
    stream_lanes: int  # source=hub: fixed number of independent document streams; dp must divide it
    stream_window: int  # source=hub: windows shuffled together
    tokenizer: str | None  # sentencepiece .model file; None: trained once on the training text and cached
    tokenizer_vocab: int  # pieces of a tokenizer trained here, without sentinels
    tokenizer_lines: int  # sampled lines it is trained on
    character_coverage: float  # share of a trained tokenizer's text whose characters it knows; 1: all of them
    byte_fallback: bool  # a trained tokenizer spells unknown characters in bytes: 256 of its pieces
    sentinels: int  # <extra_id_0>, .. behind the pieces; their number, or 0, for a tokenizer that has its own
    encoder_length: int  # tokens after corruption, with EOS
    decoder_length: int | None  # None: what encoder_length implies (T5: 512 -> 114)
    task: str  # what windows of text become; a row of conf.tasks.table
    noise_density: float  # share of the tokens that is masked (T5: 0.15)
    mean_span_length: float  # tokens of a masked span, on average (T5: 3)
    packing: PackingName  # concat: windows run across documents as in T5; document: windows are padded
    seed: int  # data order and spans; independent of the model's seed
    workers: int  # background processes per rank that corrupt (and, for streams, tokenize) ahead of the step
    prepare_workers: int  # processes that tokenize documents to shards
    cache_dir: str  # tokenizers and tokenised shards


@dataclass(frozen=True, kw_only=True, slots=True)
class RawParallelConfig:
    """How ranks share the work. world = tp * dp; experts: world = etp * ep * edp."""

    tp: int  # tensor parallelism: ranks that share every matrix
    ep: int  # expert parallelism: ranks that share the experts of a layer; null: the most that dp and experts allow
    etp: int | None  # tensor shards of one expert: tp or 1; None: tp
    zero: Literal[0, 1, 2]  # ZeRO stage: over dp are sharded 0 nothing, 1 optimizer states, 2 gradients as well
    backend: Literal["auto", "gloo", "nccl"]  # of collectives; auto: nccl with GPUs, else gloo
    timeout_s: float  # of one collective


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimizer; the learning rate comes from `ScheduleConfig`."""

    name: str  # which optimizer; a row of conf.optimizers
    beta1: float  # AdamW: decay of the first moment; 0 with Adafactor, which keeps none
    beta2: float  # AdamW: decay of the second moment
    epsilon: float  # AdamW: added to the root of the second moment; Adafactor: to squared gradients
    weight_decay: float  # decoupled; not on norms
    decay_rate: float  # Adafactor: second-moment decay exponent (paper 0.8)
    clip_threshold: float  # Adafactor: update RMS clip
    scale_parameter: bool  # Adafactor: scale updates by parameter RMS
    clip_norm: float  # global gradient norm over all shards; 0: off


@dataclass(frozen=True, kw_only=True, slots=True)
class RawScheduleConfig:
    """Learning rate as a function of the step."""

    name: ScheduleName  # shape after the warm-up; wsd: warm-up, stable, decay
    lr: float  # peak; for rsqrt the value at the end of warm-up
    warmup_steps: int | None  # None: a tenth of the run, 10,000 at most
    warmup_shape: WarmupShape  # linear: from 0 to lr; flat: lr from the first step on, as T5's
    min_lr_ratio: float  # floor of cosine, linear and wsd, as a share of lr
    decay_fraction: float  # wsd: share of all steps spent decaying at the end


@dataclass(frozen=True, kw_only=True, slots=True)
class RawTrainConfig:
    """The loop: how long, how large, how precise, when to evaluate and save."""

    steps: int | None  # optimizer steps; this or `tokens` (whichever ends first when both are set)
    tokens: int | None  # real encoder + target tokens
    global_batch: int  # sequences per optimizer step over all ranks and micro-batches
    accumulation: int  # micro-batches per step; a rank's micro-batch is global_batch / dp / accumulation sequences
    precision: Precision  # bf16: bf16 weights and activations, fp32 masters, fp32 router as moe.router_precision says
    activation_checkpointing: bool  # compute a block again in its backward pass instead of keeping activations
    compile: CompileMode  # torch.compile in training steps: each kind of block, or the whole model as one graph
    log_every: int  # steps between lines of metrics.jsonl
    eval_every: int | None  # steps; None: a tenth of the run; 0: only first and last
    eval_batches: int  # global batches per evaluation
    save_every: int | None  # steps; None: a quarter of the run; 0: only last
    keep_last: int  # checkpoints kept
    keep_every: int | None  # additionally keep every checkpoint whose step is a multiple of this
    resume: Literal["auto", "never", "required"]  # never: refuse a folder with checkpoints, but for a restart
    allow_data_change: bool  # go on (or start from weights) although text or tokenizer are not the checkpoint's
    from_checkpoint: str | None  # start from the weights of this run or checkpoint folder (step 0, fresh optimizer)
    fill_samples: int  # spans shown at the end


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggingConfig:
    """What is written where; `metrics.jsonl` is always complete."""

    wandb: Literal["auto", "offline", "online", "off"]  # auto: what WANDB_MODE says, else online with key and server
    wandb_project: str | None  # of Weights & Biases; None: WANDB_PROJECT, else pointsman
    wandb_entity: str | None  # team or user of Weights & Biases; None: WANDB_ENTITY, else the key's own
    tensorboard: bool  # write event files for TensorBoard into the run folder's tensorboard/
    progress: Literal["auto", "live", "plain", "off"]  # auto: live on a terminal, else plain lines


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    """How processes start."""

    launcher: str  # who starts the ranks; a row of conf.launchers: local starts them here, slurm submits a job
    nproc: int  # ranks per node
    nodes: int  # machines
    threads_per_rank: int | None  # CPU threads; None: cores / nproc
    rdzv_endpoint: str | None  # host:port of the c10d rendezvous; None: this machine, free port
    max_restarts: int  # times that all ranks are started again after one failed
    slurm_partition: str | None  # of the job; None: the cluster's default
    slurm_account: str | None  # to be charged; None: the user's default
    slurm_time: str  # limit of the job, such as 24:00:00 or 2-12:00:00
    slurm_gpus_per_node: int | None  # GPUs asked for; None: none
    slurm_cpus_per_task: int | None  # cores asked for on a node; None: one for each rank
    slurm_container: str | None  # image for srun --container-image; None: no container


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRunConfig:
    """One run as it was asked for: what is derived may be None."""

    name: str | None  # folder below runs_dir; None: the model's preset and the time
    runs_dir: str  # folder of all runs
    seed: int  # of weights, dropout and jitter; the data have their own
    model: RawModelConfig
    moe: RawMoeConfig
    data: RawDataConfig
    parallel: RawParallelConfig
    optim: OptimConfig
    schedule: RawScheduleConfig
    train: RawTrainConfig
    logging: LoggingConfig
    launch: LaunchConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(RawModelConfig):
    """The section with its derived fields filled."""

    logit_scale: LogitScale


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeConfig(RawMoeConfig):
    """The section with its derived fields filled."""

    decoder_sparse_every: int
    group_sequences: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(RawDataConfig):
    """The section with its derived fields filled."""

    decoder_length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig(RawParallelConfig):
    """The section with its derived fields filled."""

    etp: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig(RawScheduleConfig):
    """The section with its derived fields filled."""

    warmup_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(RawTrainConfig):
    """The section with its derived fields filled."""

    eval_every: int
    save_every: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig(RawRunConfig):
    """One run with every derived field filled: what all but the rules of `conf` reads."""

    model: ModelConfig
    moe: MoeConfig
    data: DataConfig
    parallel: ParallelConfig
    schedule: ScheduleConfig
    train: TrainConfig
