"""Which device a rank computes on, set up for training."""

from __future__ import annotations

import os

import torch

from conf.schema import RunConfig


def local_device(cfg: RunConfig) -> torch.device:
    """This rank's accelerator, or the CPU where there is none (or the backend is gloo)."""
    # fp32 means fp32, for the router above all: vendors' containers set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, with which
    # the factors of a product would be rounded to 10 bits.
    torch.set_float32_matmul_precision("highest")
    if cfg.parallel.backend == "gloo" or not torch.cuda.is_available():
        # Softmax over logits that differ by 90 or more gives subnormal numbers, on which CPUs compute far slower:
        # measured, a step of the small default costs 1.5 times the time without this after 100 steps, and more later.
        torch.set_flush_denormal(True)
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    # cuDNN's attention gives no gradient to what is added to the scores, and T5's relative bias is learnt there.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def make_repeatable(device: torch.device) -> None:
    """Let a training run on an accelerator give the same bits every time, so that resuming is exact; CPUs do anyway.

    Without it the backward of fused attention with a bias adds up in the order in which blocks happen to finish. An
    operation that has no repeatable form raises RuntimeError with its name. Not for generation: a cumulative sum of
    floats has none.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory is for finding bugs, and costs a pass over every buffer. The stubs do not know the flag.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
