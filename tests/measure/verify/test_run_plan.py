"""Layouts equal one process, and each planted defect is found and named by what it spoils first."""

import os
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

import parallel.optim.masters
import tests.harness  # noqa: F401 - its server of forks, with everything imported, serves here too
import trainer.step
from conf.derived.groups import micro_batch_size
from measure.verify.observe.record import expert_layers
from parallel.layers.sharding import spec_of
from parallel.mesh import collectives
from tests.measure.verify.tiny import Planted, plan, run


def expert_gradients_times_ep(job):
    for parameter in job.module.parameters():
        if spec_of(parameter).is_expert:
            parameter.register_hook(lambda grad: grad * job.mesh.ep.size)


def norm_without_experts(job):
    counted = parallel.optim.masters.is_counted
    return patch("parallel.optim.masters.is_counted", lambda p, mesh: counted(p, mesh) and not spec_of(p).is_expert)


def aux_loss_times(factor):
    """The auxiliary loss enters the gradient `factor` times; what is logged is right."""
    right = trainer.step.micro_batch_loss

    def wrong(output, scale, moe):
        again = replace(moe, aux_loss_weight=moe.aux_loss_weight * factor, z_loss_weight=moe.z_loss_weight / factor)
        return replace(right(output, scale, moe), total=right(output, scale, again).total)

    return patch("trainer.step.micro_batch_loss", wrong)


def aux_twice_under_recomputation(job):
    return aux_loss_times(2.0 if job.cfg.train.activation_checkpointing else 1.0)


def aux_times_tp(job):
    return aux_loss_times(float(job.mesh.tp.size))


def noise_of_the_rank(job):
    right = trainer.step.NoiseKey
    return patch("trainer.step.NoiseKey", lambda **key: right(**{**key, "seed": key["seed"] + job.mesh.world.rank}))


def capacity_per_rank(job):
    for layer in expert_layers(job.module, job.cfg).values():
        layer.rules = replace(layer.rules, group_sequences=micro_batch_size(job.cfg))


def experts_swapped(job):
    """The first expert of ep rank 0 and that of ep rank 1, in every layer."""
    with torch.no_grad():
        for parameter in job.module.parameters():
            if spec_of(parameter).is_expert:
                parameter[0] = collectives.all_gather(parameter[0].clone(), job.mesh.ep)[1 - job.mesh.ep.rank]


# layout -> defect, what must differ first, and a part of where
DEFECTS = {
    "tp=1 dp=2 ep=2 etp=1 zero=1 acc=1": (expert_gradients_times_ep, {"gradient"}, ".experts."),
    "tp=1 dp=2 ep=2 etp=1 zero=0 acc=1": (norm_without_experts, {"norm"}, ""),
    "tp=1 dp=2 ep=1 etp=1 zero=1 acc=1 recompute": (aux_twice_under_recomputation, {"gradient"}, ""),
    "tp=2 dp=1 ep=1 etp=2 zero=1 acc=1": (aux_times_tp, {"gradient"}, ""),
    "tp=1 dp=2 ep=1 etp=1 zero=2 acc=1": (noise_of_the_rank, {"routing", "loss"}, ""),
    "tp=1 dp=2 ep=1 etp=1 zero=0 acc=2": (capacity_per_rank, {"routing"}, "encoder.1"),
    "tp=1 dp=2 ep=2 etp=1 zero=0 acc=2": (experts_swapped, {"parameter"}, ".experts."),
}


PLANTED = Planted(defects={layout: defect for layout, (defect, _, _) in DEFECTS.items()})


@pytest.fixture(scope="module")
def spoiled():
    return run(plan(*DEFECTS, ranks=2, steps=1), PLANTED)


@pytest.mark.parametrize("layout", DEFECTS, ids=[defect.__name__ for defect, _, _ in DEFECTS.values()])
def test_a_planted_defect_is_found(spoiled, layout):
    _, quantities, where = DEFECTS[layout]
    verdict = spoiled[layout]
    assert verdict.status == "differs", verdict
    assert verdict.findings.first.quantity in quantities, verdict
    assert where in verdict.findings.first.where, verdict


def assert_equal(verdicts):
    assert verdicts
    for verdict in verdicts.values():
        assert verdict.status == "equal", verdict


@pytest.mark.slow
def test_layouts_without_a_defect_equal_one_process():
    verdicts = run(plan("ep=2 zero=1 recompute", "tp=2 zero=2 acc=2", "dp=1 zero=0", ranks=2, steps=2))
    assert_equal(verdicts)
    for verdict in verdicts.values():
        quantities = {"routing", "loss", "aux", "z", "gradient", "norm", "parameter", "moment"}
        assert set(verdict.findings.worst) == quantities


@pytest.mark.slow
def test_the_layouts_of_the_defects_equal_one_process_without_them():
    assert_equal(run(plan(*DEFECTS, ranks=2, steps=1)))


@pytest.mark.slow
def test_four_ranks_and_fewer_in_one_pool():
    assert_equal(run(plan("tp=2 ep=2 zero=2 acc=2 recompute", "tp=2 ep=4 etp=1 zero=0", "dp=1", "tp=2 dp=1 zero=2")))


def test_in_fp64_the_model_holds_ten_digits():
    verdicts = run(plan("dp=2 ep=2 acc=2 recompute", "tp=2 ep=2 etp=1 dp=1", exact=True, ranks=2, steps=1))
    assert_equal(verdicts)
    for verdict in verdicts.values():
        assert 0 < verdict.findings.worst["gradient"].error < 1e-10
        assert "moment" not in verdict.findings.worst


@pytest.mark.slow
def test_adafactor_and_untied_gated_models():
    settings = ("optim=adafactor", "parallel.zero=0", "model.ffn=gated_gelu", "model.tie_embeddings=false")
    verdicts = run(plan("tp=2 dp=1", "ep=2 dp=2", overrides=settings, ranks=2))
    assert_equal(verdicts)
    assert any("exp_avg_sq_row" in key for key in next(iter(verdicts.values())).findings.covered)


@pytest.mark.slow
def test_without_dropping():
    overrides = ("moe.capacity=dropless", "moe.router=top_2")
    assert_equal(run(plan("tp=2 dp=1", "ep=2 zero=1 recompute", "tp=2 ep=2 etp=1", overrides=overrides, ranks=2)))


@pytest.mark.slow
def test_compiled_steps():
    """By torch's own compiler, in fp64, where nothing hides behind rounding; graphs and breaks: tests/model."""
    small = ("model.num_encoder_layers=1", "model.num_decoder_layers=1", "moe.sparse_every=1", "moe.capacity=dropless")
    made = plan("dp=1 compile", overrides=small, ranks=1, steps=1, exact=True, timeout_s=500.0)
    assert_equal(run(made))


@pytest.mark.slow
def test_dense_models():
    verdicts = run(plan("tp=2 dp=1 zero=2", "dp=2 zero=0", overrides=("moe=dense",), ranks=2))
    assert_equal(verdicts)
    assert "routing" not in next(iter(verdicts.values())).findings.worst


@pytest.mark.slow
def test_bf16_routes_alike_given_equal_logits():
    verdicts = run(plan("tp=2 dp=1 zero=1", "ep=2 dp=2 zero=0", overrides=("train.precision=bf16",), ranks=2))
    assert_equal(verdicts)
    for verdict in verdicts.values():
        assert verdict.replayed
        assert verdict.findings.worst["routing"].error == 0
        assert verdict.findings.worst["gradient"].error > 5e-5, "bf16 is not fp32"
        assert verdict.findings.worst["norm"].error > 1e-5


def _same_gradient(values, others):
    """`others` with the gradient of `values`."""
    return values + (others - values).detach()


def _other_side_of_the_tie(tap):
    """Tokens whose two best logits are equal but for what this test calls rounding prefer the second."""
    right = tap.logits

    def logits(logits_GSE):
        top = logits_GSE.topk(2, dim=-1)
        turned = logits_GSE.scatter(-1, top.indices, top.values.flip(-1))
        tied = (top.values[..., :1] - top.values[..., 1:]) <= 1e-2
        return right(_same_gradient(logits_GSE, torch.where(tied, turned, logits_GSE)))

    return logits


@contextmanager
def coarse_rounding(job):
    """Rounding a thousand times as large as it is, at ties of routers."""
    with patch("measure.verify.compare.TIE", 2e-2):
        for layer in expert_layers(job.module, job.cfg).values():
            layer.tap.logits = _other_side_of_the_tie(layer.tap)
        yield


def test_ties_are_counted_and_what_follows_them_compares():
    (ties,) = run(plan("tp=2 ep=2 etp=1 dp=1 zero=1 recompute", ranks=2, steps=1), coarse_rounding).values()
    assert ties.status == "equal", ties
    assert ties.ties > 0
    assert ties.replayed


@contextmanager
def trouble(job):
    """Rank 1 raises, hangs or is killed, by the ZeRO stage."""
    if job.mesh.world.rank == 1:
        if job.cfg.parallel.zero == 0:
            raise ValueError("a planted error")
        if job.cfg.parallel.zero == 1:
            time.sleep(600)
        if job.mesh.tp.size == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    yield


@pytest.mark.slow
def test_a_layout_that_fails_does_not_take_the_others_with_it():
    layouts = ("dp=2 zero=0", "dp=2 zero=1", "tp=2 zero=2", "dp=2 zero=2")
    raised, hung, killed, fine = run(plan(*layouts, ranks=2, steps=1, timeout_s=15.0), trouble).values()
    assert raised.status == hung.status == killed.status == "failed"
    assert raised.message.startswith("rank 1 raised ValueError: a planted error")
    assert "hung: no answer after 15 s" in hung.message
    assert killed.message.startswith("rank 1 was killed by SIGKILL")
    assert fine.status == "equal", fine


@pytest.mark.parametrize("semantics", ["flaxformer", "hf", "paper"])
@pytest.mark.slow
def test_every_semantics(semantics):
    assert_equal(run(plan("tp=2 ep=2 zero=1", "dp=4 ep=4 zero=2 acc=1", overrides=(f"moe={semantics}",), ranks=4)))


@pytest.mark.slow
def test_eight_ranks():
    layouts = ("tp=2 ep=4 zero=1", "tp=4 ep=2 etp=1 zero=2", "dp=8 ep=4 zero=0", "tp=2 ep=2 etp=1 zero=2 recompute")
    assert_equal(run(plan(*layouts, ranks=8)))
