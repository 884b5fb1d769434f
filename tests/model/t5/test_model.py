from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model.contract import ModelOutput
from model.t5.model import SwitchTransformer
from parallel.layers.sharding import tagged_parameters
from tests.model.t5.build import MODEL, MOE, Batch, make_batch, make_model

DROPOUT = {"dropout": 0.2, "attention_dropout": 0.1}


def run(module: SwitchTransformer, batch: Batch, noise=None, mode="train") -> ModelOutput:
    return module(batch.encoder_BL, batch.targets_BT, mode=mode, noise=noise)


def noise_for(batch: Batch, step: int = 3):
    rng = pytest.importorskip("parallel.rng")
    return rng.NoiseKey(seed=1, step=step, rows_B=torch.arange(10, 10 + len(batch.encoder_BL)))


def gradients(module: SwitchTransformer, batch: Batch, noise=None) -> dict[str, torch.Tensor]:
    module.zero_grad()
    run(module, batch, noise).token_loss_BT.sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}  # type: ignore[union-attr]


def test_padding_does_not_matter() -> None:
    module, batch = make_model(), make_batch()
    wider = Batch(encoder_BL=F.pad(batch.encoder_BL, (0, 4)), targets_BT=F.pad(batch.targets_BT, (0, 3)))
    loss_BT, wider_BT = run(module, batch).token_loss_BT, run(module, wider).token_loss_BT
    assert torch.allclose(wider_BT[:, :7], loss_BT, rtol=0, atol=1e-12)
    assert (wider_BT[:, 7:] == 0).all()
    assert ((loss_BT == 0) == (batch.targets_BT == 0)).all()


def test_decoder_does_not_see_later_tokens() -> None:
    module, batch = make_model(), make_batch()
    before_BT = run(module, batch).token_loss_BT
    batch.targets_BT[:, 4] = 50
    after_BT = run(module, batch).token_loss_BT
    assert torch.equal(before_BT[:, :4], after_BT[:, :4])
    assert (before_BT[0, 5:] != after_BT[0, 5:]).all(), "the targets before it are what a token is predicted from"


def test_padding_columns_of_the_vocabulary_have_no_probability() -> None:
    module, batch = make_model(), make_batch()
    module.shared.weight.data[100:] = 1e3  # rows 100 .. 127 only pad
    encoded = module.encode(batch.encoder_BL, mode="eval", noise=None)
    logits_BTV = module.logits(encoded.hidden_BLD)
    assert logits_BTV.shape[-1] == 128
    assert (logits_BTV[..., 100:] == float("-inf")).all()
    grads = gradients(module, batch)
    assert (grads["shared.weight"][100:] == 0).all()
    assert all(g.isfinite().all() for g in grads.values())


def test_tied_logits_are_scaled_and_untied_are_not() -> None:
    tied, untied = make_model(), make_model(tie_embeddings=False)
    assert untied.lm_head is not None
    untied.lm_head.weight.data = tied.shared.weight.data.clone()
    hidden_BTD = torch.randn(2, 3, MODEL.d_model, dtype=torch.float64)
    scaled_BTV = untied.logits(hidden_BTD)[..., :100] * MODEL.d_model**-0.5
    assert torch.allclose(tied.logits(hidden_BTD)[..., :100], scaled_BTV, rtol=0, atol=1e-12)
    assert sum(1 for _ in tagged_parameters(untied)) == sum(1 for _ in tagged_parameters(tied)) + 1


def test_an_embedding_for_each_stack() -> None:
    """Equal ones compute what the shared one does, and share out its gradient; as drawn they differ."""
    one, two = make_model(tie_embeddings=False), make_model(tie_embeddings=False, share_embeddings=False)
    tables = [two.encoder_embedding, two.decoder_embedding]
    assert one.shared is not None
    assert two.shared is None
    assert not torch.equal(*(table.weight for table in tables))
    for table in tables:
        table.weight.data.copy_(one.shared.weight)
    batch = make_batch()
    assert torch.equal(run(one, batch).token_loss_BT, run(two, batch).token_loss_BT)
    shared, apart = gradients(one, batch), gradients(two, batch)
    halves = [apart.pop(f"{stack}_embedding.weight") for stack in ("encoder", "decoder")]
    assert all(half.abs().sum() > 0 for half in halves)
    assert torch.allclose(sum(halves), shared.pop("shared.weight"), rtol=0, atol=1e-12)
    assert apart.keys() == shared.keys()
    assert all(torch.equal(apart[name], shared[name]) for name in apart)


@pytest.mark.parametrize("sparse", ["dense", "switch"])
def test_recompute_changes_nothing(sparse: str) -> None:
    batch = make_batch()
    noise = noise_for(batch)
    settings = {"moe": sparse, "experts": replace(MOE, jitter=0.1), **DROPOUT}
    once, again = make_model(**settings), make_model(recompute=True, **settings)
    one, other = gradients(once, batch, noise), gradients(again, batch, noise)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    if sparse == "switch":
        plain, recomputed = run(once, batch, noise), run(again, batch, noise)
        assert [len(stack) for stack in recomputed.routing.values()] == [1, 1]
        assert torch.equal(plain.layers[0].aux_loss, recomputed.layers[0].aux_loss)


def test_noise_is_keyed_by_rows_and_step() -> None:
    module, batch = make_model(**DROPOUT), make_batch()
    noise = noise_for(batch)
    full_BT = run(module, batch, noise).token_loss_BT
    half = slice(2, 4)
    half_BT = run(module, batch[half], replace(noise, rows_B=noise.rows_B[half])).token_loss_BT
    assert torch.allclose(full_BT[half], half_BT, rtol=0, atol=1e-12)
    assert not torch.allclose(full_BT, run(module, batch, noise_for(batch, step=4)).token_loss_BT)
    assert not torch.allclose(full_BT, run(module, batch).token_loss_BT)


def test_noise_outside_training_is_refused() -> None:
    module, batch = make_model(**DROPOUT), make_batch()
    with pytest.raises(AssertionError, match="training only"):
        run(module, batch, noise_for(batch), mode="eval")


@pytest.mark.parametrize(("dtype", "loss"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_precision(dtype: str, loss: str) -> None:
    module, batch = make_model(dtype=getattr(torch, dtype), tie_embeddings=False, ffn="gated_gelu"), make_batch()
    kept = getattr(torch, "float32" if dtype == "bfloat16" else dtype)
    for _, parameter, spec in tagged_parameters(module):
        assert parameter.dtype == (kept if spec.keep_fp32 else getattr(torch, dtype))
    seen = []
    for block in [*module.encoder.layers, *module.decoder.layers]:
        block.register_forward_hook(lambda _, args, out: seen.append(out.x_BLD.dtype))
    output = run(module, batch)
    assert set(seen) == {getattr(torch, dtype)}
    assert output.token_loss_BT.dtype == getattr(torch, loss)
    assert module.logits(torch.zeros(1, 1, MODEL.d_model, dtype=getattr(torch, dtype))).dtype == getattr(torch, loss)
    output.token_loss_BT.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("embeddings", [{}, {"tie_embeddings": False, "share_embeddings": False}], ids=["one", "two"])
def test_cached_steps_equal_the_whole_sequence(embeddings: dict[str, bool]) -> None:
    module, batch = make_model(**embeddings), make_batch()
    encoded = module.encode(batch.encoder_BL, mode="no_drop", noise=None)
    memory = module.memory(encoded.hidden_BLD, batch.encoder_BL)
    inputs_BT = F.pad(batch.targets_BT[:, :-1], (1, 0))
    real_BT = torch.ones_like(inputs_BT, dtype=torch.bool)
    whole = module.decoder(module.embed(inputs_BT, "decoder"), real_BT, memory, mode="no_drop", noise=None)
    whole_BTV = module.logits(whole.hidden_BLD)[..., :100]
    decoding = module.start_decoding(batch.encoder_BL, copies=1, max_length=7, mode="no_drop")
    for t in range(7):
        step_BV = decoding.next_logits(inputs_BT[:, t])
        assert torch.allclose(step_BV, whole_BTV[:, t], rtol=0, atol=1e-11)
    with pytest.raises(AssertionError, match="full"):
        decoding.next_logits(inputs_BT[:, 0])
