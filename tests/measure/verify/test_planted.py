"""More planted defects, one a layout: each is found, and what is named first is the place where it was planted."""

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

import parallel.mesh.collectives
import tests.harness  # noqa: F401 - its server of forks, with everything imported, serves here too
import trainer.step
from measure.verify.observe.record import expert_layers
from measure.verify.report import describe_first
from parallel.layers.sharding import spec_of
from parallel.optim.masters import MasterOptimizer
from tests.measure.verify.tiny import Planted, plan, run


def no_sum_in_backward(job):
    """Of what enters a column-parallel layer, the gradient stays that of this tensor rank."""
    return patch.object(
        parallel.mesh.collectives._CopyTo, "backward", staticmethod(lambda ctx, *grads: (grads[0], None))
    )


def router_gradient_of_one_rank(job):
    return patch.object(type(exchange_of(job)), "shared_weight", lambda self, weight: weight)


def partial_sums_of_experts(job):
    return patch("parallel.layers.experts.reduce_from", lambda values, axis: values)


def z_of_one_rank(job):
    for layer in expert_layers(job.module, job.cfg).values():
        layer._report = _with(layer._report, lambda routing, of: replace(of, z_sum=routing.z_sum))


def local_tokens(job):
    right = trainer.step.count_tokens

    def wrong(batch, groups, **settings):
        counts = right(batch, groups, **settings)
        own = sum(int((micro.targets_BT != 0).sum()) for micro in batch.micro) * groups.dp.size
        return replace(counts, targets=own)

    return patch("trainer.step.count_tokens", wrong)


def rate_one_percent_higher(job):
    right = job.engine.step
    return patch.object(job.engine, "step", lambda lr: right(lr * 1.01))


def experts_without_decay(job):
    for group in job.engine._inner.param_groups:
        if group["moe"]:
            group["weight_decay"] = 0.0


def experts_not_clipped(job):
    right = MasterOptimizer._clip

    def clip(self, norm):
        for parameter, master in self.master_of.items():
            if spec_of(parameter).is_expert:
                master.grad.mul_(max(1.0, float(norm) / self.clip_norm))
        right(self, norm)

    return patch.object(MasterOptimizer, "_clip", clip)


def jitter_drawn_again(job):
    for layer in expert_layers(job.module, job.cfg).values():
        layer._tokens = _every_second_call(layer._tokens)


def noise_of_the_micro_batch(job):
    right = trainer.step.NoiseKey
    return patch("trainer.step.NoiseKey", lambda **key: right(**{**key, "rows_B": key["rows_B"] - key["rows_B"][0]}))


def experts_out_of_order(job):
    """Rank 1 of ep holds its experts the other way round."""
    if job.mesh.ep.rank == 1:
        with torch.no_grad():
            for parameter in job.module.parameters():
                if spec_of(parameter).is_expert:
                    parameter.copy_(parameter.flip(0))


def exchange_of(job):
    return next(iter(expert_layers(job.module, job.cfg).values())).exchange


def _with(right: Callable, change: Callable) -> Callable:
    def report(routing, **settings):
        return change(routing, right(routing, **settings))

    return report


def _every_second_call(right: Callable) -> Callable:
    calls = []

    def tokens(x_BLD, real_BL, ids_BL, sequences, noise):
        calls.append(1)
        again = replace(noise, starts_2S=noise.starts_2S + (len(calls) % 2 == 0))
        return right(x_BLD, real_BL, ids_BL, sequences, again)

    return tokens


# layout -> defect, and how what is named first begins
DEFECTS = {
    "tp=2 dp=1 ep=1 etp=2 zero=0 acc=1": (no_sum_in_backward, "gradient of decoder.layers.1.ff_norm.weight in step 1"),
    "tp=2 dp=1 ep=1 etp=1 zero=1 acc=1": (
        router_gradient_of_one_rank, "gradient of decoder.layers.1.ff.router.weight in step 1",
    ),
    "tp=2 dp=1 ep=1 etp=2 zero=1 acc=1": (partial_sums_of_experts, "output of encoder.layers.1.ff in step 1"),
    "tp=2 dp=1 ep=2 etp=1 zero=0 acc=1": (z_of_one_rank, "z of encoder.1 in step 1"),
    "tp=1 dp=2 ep=1 etp=1 zero=2 acc=1": (local_tokens, "loss of the global batch as it enters backward in step 1"),
    "tp=1 dp=2 ep=1 etp=1 zero=1 acc=1": (rate_one_percent_higher, "parameter of shared.weight in step 1"),
    "tp=1 dp=2 ep=2 etp=1 zero=1 acc=1": (
        experts_without_decay, "parameter of encoder.layers.1.ff.experts.wi in step 1",
    ),
    "tp=1 dp=2 ep=2 etp=1 zero=0 acc=1": (
        experts_not_clipped, "parameter of encoder.layers.1.ff.experts.wi in step 1",
    ),
    "tp=1 dp=2 ep=1 etp=1 zero=0 acc=1 recompute": (
        jitter_drawn_again, "output of encoder.layers.1.ff, recomputed in step 1",
    ),
    "tp=1 dp=1 ep=1 etp=1 zero=0 acc=2": (noise_of_the_micro_batch, "the noise's key (rows) in step 1"),
    "tp=1 dp=2 ep=2 etp=1 zero=2 acc=2": (
        experts_out_of_order, "parameter of encoder.layers.1.ff.experts.wi before the first step",
    ),
}  # fmt: skip


PLANTED = Planted(defects={layout: defect for layout, (defect, _) in DEFECTS.items()})


@pytest.fixture(scope="module")
def spoiled():
    return run(plan(*DEFECTS, ranks=2, steps=1), PLANTED)


@pytest.mark.slow
@pytest.mark.parametrize("layout", DEFECTS, ids=[defect.__name__ for defect, _ in DEFECTS.values()])
def test_a_planted_defect_is_named(spoiled, layout):
    verdict = spoiled[layout]
    assert verdict.status == "differs", verdict
    assert describe_first(verdict.findings).startswith(DEFECTS[layout][1]), describe_first(verdict.findings)


@pytest.mark.slow
def test_their_layouts_equal_one_process_without_them():
    for verdict in run(plan(*DEFECTS, ranks=2, steps=1)).values():
        assert verdict.status == "equal", verdict


def stale_copy(job):
    """In bf16 rank 1 goes on with the weights of before."""
    right = job.engine.step

    def step(lr):
        first = next(job.module.parameters())
        kept = first.detach().clone()
        result = right(lr)
        if job.mesh.dp.rank == 1:
            first.data.copy_(kept)
        return result

    return patch.object(job.engine, "step", step)


def experts_twice(job):
    for parameter in job.module.parameters():
        if spec_of(parameter).is_expert:
            parameter.register_hook(lambda grad: grad * 2)


BF16 = {
    "tp=1 dp=2 ep=1 etp=1 zero=1 acc=1": (stale_copy, "parameter of shared.weight in step 1"),
    "tp=1 dp=2 ep=2 etp=1 zero=0 acc=2": (experts_twice, "norm of experts in step 1"),
}


@pytest.mark.slow
def test_defects_that_show_in_bf16():
    planted = Planted(defects={layout: defect for layout, (defect, _) in BF16.items()})
    verdicts = run(plan(*BF16, overrides=("train.precision=bf16",), ranks=2, steps=1), planted)
    for layout, (_, place) in BF16.items():
        assert verdicts[layout].status == "differs", verdicts[layout]
        assert describe_first(verdicts[layout].findings).startswith(place), describe_first(verdicts[layout].findings)
