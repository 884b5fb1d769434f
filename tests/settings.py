"""Configuration sections of small tests, each field once: tests `replace` what matters to them.

Literals and no composition, since ranks of tests make them too and Hydra takes a tenth of a second in each; see
`tests.conf.composed` for whole configurations.
"""

from __future__ import annotations

from typing import Literal

from conf.schema import LaunchConfig, ModelConfig, MoeConfig, OptimConfig, ParallelConfig, TrainConfig

MODEL = ModelConfig(
    preset="test", vocab_size=128, d_model=16, d_ff=24, d_kv=4, num_heads=2, num_encoder_layers=2,
    num_decoder_layers=2, ffn="relu", tie_embeddings=True, share_embeddings=True, logit_scale="width",
    relative_buckets=8, relative_max_distance=16, dropout=0.0, attention_dropout=0.0, norm_epsilon=1e-6, init_scale=1.0,
)  # fmt: skip
MOE = MoeConfig(
    semantics="mesh_tf", router="switch", decoder_router=None, top_k=None, second_policy="all", second_threshold=0.2,
    second_loss_weight=0.0, padding="semantics", defects="mended", router_precision="fp32", num_experts=4,
    sparse_every=2, decoder_sparse_every=2, capacity="bounded", capacity_factor=1.25, eval_capacity_factor=2.0,
    min_expert_capacity=1, group_sequences=1, jitter=0.0, aux_loss_weight=0.01, z_loss_weight=0.0, expert_dropout=0.0,
)  # fmt: skip
OPTIM = OptimConfig(
    name="adamw", beta1=0.9, beta2=0.95, epsilon=1e-6, weight_decay=0.1, decay_rate=0.8, clip_threshold=1.0,
    scale_parameter=True, clip_norm=0.0,
)  # fmt: skip
TRAIN = TrainConfig(
    steps=3, tokens=None, global_batch=1, accumulation=1, precision="fp32", activation_checkpointing=False,
    compile="off", log_every=1, eval_every=0, eval_batches=1, save_every=0, keep_last=1, keep_every=None,
    resume="never", allow_data_change=False, from_checkpoint=None, fill_samples=0,
)  # fmt: skip
LAUNCH = LaunchConfig(
    launcher="local", nproc=2, nodes=1, threads_per_rank=None, rdzv_endpoint=None, max_restarts=0,
    slurm_partition=None, slurm_account=None, slurm_time="24:00:00", slurm_gpus_per_node=None,
    slurm_cpus_per_task=None, slurm_container=None,
)  # fmt: skip


def parallel_config(
    tp: int = 1, ep: int = 1, etp: int | None = None, *, zero: Literal[0, 1, 2] = 0,
    backend: Literal["auto", "gloo", "nccl"] = "gloo",
) -> ParallelConfig:  # fmt: skip
    """Axes of a mesh; `etp` None: tp."""
    return ParallelConfig(tp=tp, ep=ep, etp=tp if etp is None else etp, zero=zero, backend=backend, timeout_s=20.0)
