"""The configuration of a run as frozen dataclasses: every field, its unit and its meaning.

YAML is composed by Hydra (`conf.compose`), converted strictly into these classes and checked (`conf.rules.validate`)
before torch is imported. Defaults live in the YAML groups beside this file, not here: a field without a value there is
an error. `None` always means "derived"; what it is derived from is said at the field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stack = Literal["encoder", "decoder"]
SemanticsName = Literal["mesh_tf", "flaxformer", "hf", "hf_4", "paper"]
RouterName = Literal["switch", "top_2", "switch_max", "expert_choice", "ntlb"]
SecondPolicy = Literal["all", "none", "threshold", "random"]
PaddingName = Literal["semantics", "ignored", "downweighted"]
DefectsName = Literal["mended", "reproduced"]
RouterPrecision = Literal["fp32", "activation"]
Ffn = Literal["relu", "gelu", "gated_gelu"]
MoeKind = Literal["switch", "dense"]
ScheduleName = Literal["rsqrt", "cosine", "wsd", "linear", "constant"]
Precision = Literal["bf16", "fp32"]
LogitScale = Literal["width", "one"]
PackingName = Literal["concat", "document"]
LauncherName = Literal["local", "slurm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A T5 encoder-decoder (arXiv 1910.10683); which feed-forward layers are expert banks is in `MoeConfig`."""

    preset: str
    moe: MoeKind  # "dense" replaces every expert bank by one feed-forward layer of the same shape (FLOP-matched twin)
    vocab_size: int  # ids the model knows; padded to a multiple of 128 whatever the layout, padding logits masked
    d_model: int
    d_ff: int
    d_kv: int  # width of one attention head
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int
    ffn: Ffn
    tie_embeddings: bool  # tied: logits = decoder output @ embedding.T; untied: own output matrix
    share_embeddings: bool  # one embedding for both stacks; false, untied only: one each, as in transformers 5's Switch
    logit_scale: LogitScale | None  # width: decoder output * d_model**-0.5 before the logits; None: width if tied
    relative_buckets: int
    relative_max_distance: int
    dropout: float  # residual, embedding and feed-forward dropout
    attention_dropout: float  # on attention weights; above 0 takes the unfused path
    norm_epsilon: float
    init_scale: float  # variance scale s of sqrt(s / fan_in); the Switch paper uses 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeConfig:
    """Routing and experts (Switch Transformer, arXiv 2101.03961, section 2)."""

    semantics: SemanticsName
    router: RouterName  # which ones a semantics defines: docs/routing.md
    decoder_router: RouterName | None  # None: `router`, but switch where that looks ahead (expert_choice, switch_max)
    top_k: int | None  # choices a token may try; None: 1 (switch, switch_max), 2 (top_2), 4 (ntlb)
    second_policy: SecondPolicy  # top_2 of mesh_tf: which second choices are kept; random in training only, else all
    second_threshold: float  # of the second gate; random keeps with probability gate / threshold
    second_loss_weight: float  # top_2 of mesh_tf: weight of a balancing loss over second choices (reference: 0 or 0.5)
    padding: PaddingName  # ignored, downweighted: flaxformer's masked and scatter router with ignored padding
    defects: DefectsName  # reproduced: the reference to the letter; mended: without the defects docs/routing.md lists
    router_precision: RouterPrecision  # activation: product, jitter, softmax, arg max and gate as train.precision says
    num_experts: int
    sparse_every: int  # every how many layers one holds experts (0: none); which: by the rule of the semantics
    decoder_sparse_every: int | None  # the same of the decoder; None: sparse_every
    capacity_factor: float  # training
    eval_capacity_factor: float
    min_expert_capacity: int
    group_sequences: int | None  # whole sequences per routing group; None: by the rule of the semantics
    jitter: float  # router input multiplied by U(1-jitter, 1+jitter) in training
    aux_loss_weight: float
    z_loss_weight: float  # under mesh_tf its effective weight is z_loss_weight * aux_loss_weight
    expert_dropout: float  # inside experts, instead of model.dropout (the paper fine-tunes with 0.4)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where text comes from and how it becomes encoder-decoder pairs (T5 span corruption)."""

    source: str  # a row of conf.sources
    files: tuple[str, ...]  # source=text: globs of text, JSON, Parquet or Arrow; source=shards: directories
    validation_files: tuple[str, ...]  # empty: `validation_fraction` of the documents, chosen by hash
    validation_fraction: float
    text_field: str
    hub_path: str | None  # source=hub: dataset name, e.g. allenai/c4
    hub_name: str | None  # dataset configuration, e.g. en
    hub_revision: str | None  # commit of the dataset
    hub_split: str
    hub_validation_split: str | None
    hub_files: tuple[str, ...]  # local files read through the same streaming code
    stream_lanes: int  # source=hub: fixed number of independent document streams; dp must divide it
    stream_window: int  # source=hub: windows shuffled together
    tokenizer: str | None  # sentencepiece .model file; None: trained once on the training text and cached
    tokenizer_vocab: int  # pieces of a tokenizer trained here, without sentinels
    tokenizer_lines: int  # sampled lines it is trained on
    sentinels: int  # <extra_id_0> .. ; ids count down from the end of the vocabulary
    encoder_length: int  # tokens after corruption, with EOS
    decoder_length: int | None  # None: what encoder_length implies (T5: 512 -> 114)
    noise_density: float
    mean_span_length: float
    packing: PackingName  # concat: windows run across documents as in T5; document: windows are padded
    seed: int  # data order and spans; independent of the model's seed
    workers: int  # background processes per rank that corrupt (and, for streams, tokenize) ahead of the step
    prepare_workers: int  # processes that tokenize documents to shards
    cache_dir: str  # tokenizers and tokenised shards


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How ranks share the work. world = tp * dp; experts: world = etp * ep * edp."""

    tp: int
    ep: int
    etp: int | None  # tensor shards of one expert: tp or 1; None: tp
    zero: Literal[0, 1, 2]
    backend: Literal["auto", "gloo", "nccl"]
    timeout_s: float  # of one collective


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimizer; the learning rate comes from `ScheduleConfig`."""

    name: str  # a row of conf.optimizers
    beta1: float  # AdamW; 0 with Adafactor, which keeps no first moment
    beta2: float  # AdamW
    epsilon: float  # AdamW: added to the root of the second moment; Adafactor: to squared gradients
    weight_decay: float  # decoupled; not on norms
    decay_rate: float  # Adafactor: second-moment decay exponent (paper 0.8)
    clip_threshold: float  # Adafactor: update RMS clip
    scale_parameter: bool  # Adafactor: scale updates by parameter RMS
    clip_norm: float  # global gradient norm over all shards; 0: off


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate as a function of the step."""

    name: ScheduleName
    lr: float  # peak; for rsqrt the value at the end of warm-up
    warmup_steps: int | None  # None: a tenth of the run, 10,000 at most
    min_lr_ratio: float  # floor of cosine, linear and wsd, as a share of lr
    decay_fraction: float  # wsd: share of all steps spent decaying at the end


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The loop: how long, how large, how precise, when to evaluate and save."""

    steps: int | None  # optimizer steps; this or `tokens` (whichever ends first when both are set)
    tokens: int | None  # real encoder + target tokens
    global_batch: int  # sequences per optimizer step over all ranks and micro-batches
    accumulation: int  # micro-batches per step; a rank's micro-batch is global_batch / dp / accumulation sequences
    precision: Precision
    activation_checkpointing: bool
    log_every: int
    eval_every: int | None  # steps; None: a tenth of the run; 0: only first and last
    eval_batches: int  # global batches per evaluation
    save_every: int | None  # steps; None: a quarter of the run; 0: only last
    keep_last: int
    keep_every: int | None  # additionally keep every checkpoint whose step is a multiple of this
    resume: Literal["auto", "never", "required"]  # never: refuse a folder with checkpoints, but for a restart
    allow_data_change: bool  # go on (or start from weights) although text or tokenizer are not the checkpoint's
    from_checkpoint: str | None  # start from the weights of this run or checkpoint folder (step 0, fresh optimizer)
    fill_samples: int  # spans shown at the end


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggingConfig:
    """What is written where; `metrics.jsonl` is always complete."""

    wandb: Literal["auto", "offline", "online", "off"]
    wandb_project: str
    wandb_entity: str | None
    progress: Literal["auto", "live", "plain", "off"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    """How processes start."""

    launcher: LauncherName
    nproc: int  # ranks per node
    nodes: int
    threads_per_rank: int | None  # CPU threads; None: cores / nproc
    rdzv_endpoint: str | None  # host:port of the c10d rendezvous; None: this machine, free port
    max_restarts: int
    slurm_partition: str | None
    slurm_account: str | None
    slurm_time: str
    slurm_gpus_per_node: int | None
    slurm_cpus_per_task: int | None
    slurm_container: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One run."""

    name: str | None  # folder below runs_dir; None: the model's preset and the time
    runs_dir: str
    seed: int
    model: ModelConfig
    moe: MoeConfig
    data: DataConfig
    parallel: ParallelConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    train: TrainConfig
    logging: LoggingConfig
    launch: LaunchConfig
