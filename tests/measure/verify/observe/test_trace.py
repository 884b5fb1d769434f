"""Fingerprints: one per sublayer and call, equal for equal rows whatever the batch, different for any other element."""

import torch

from measure.verify.observe.batches import global_rows
from measure.verify.observe.trace import Tracer, fingerprint, traced_modules
from model.build import build_model
from parallel.mesh.axes import single_process
from parallel.rng import NoiseKey
from tests.measure.verify.tiny import plan

CFG = plan(
    "tp=1", ranks=1, overrides=("model.num_encoder_layers=1", "model.num_decoder_layers=1", "moe.sparse_every=1")
).base


def traces(rows):
    module = build_model(CFG, single_process(), device="cpu", dtype=torch.float32)
    tracer = Tracer(module)
    encoder, targets = (torch.from_numpy(array)[rows] for array in global_rows(CFG, 0))
    module(encoder, targets, mode="train", noise=NoiseKey(seed=1, step=0, rows_B=rows))
    return {trace.place: trace for trace in tracer.take()}, tracer


def test_every_sublayer_once_in_the_order_of_the_forward():
    taken, tracer = traces(torch.arange(4))
    encoder = ["self_attention_norm", "self_attention", "ff_norm", "ff"]
    decoder = [*encoder[:2], "cross_attention_norm", "cross_attention", *encoder[2:]]
    expected = ["shared#0", *(f"encoder.layers.0.{part}#0" for part in encoder), "encoder.final_norm#0", "shared#1"]
    expected += [*(f"decoder.layers.0.{part}#0" for part in decoder), "decoder.final_norm#0"]
    assert list(taken) == expected
    assert tracer.take() == []


def test_a_row_has_the_same_print_in_another_batch():
    whole, part = traces(torch.arange(8))[0], traces(torch.arange(4, 8))[0]
    for place, trace in part.items():
        scale = whole[place].prints_BP.abs().max()
        assert torch.equal(trace.rows_B, torch.arange(4, 8))
        assert (trace.prints_BP - whole[place].prints_BP[4:]).abs().max() < 2e-6 * scale, place


def test_any_element_shows():
    x = torch.randn(2, 5, 7)
    for index in range(x[0].numel()):
        other = x.clone()
        other[1].view(-1)[index] += 1.0
        differs = (fingerprint(x) - fingerprint(other)).abs().amax(1)
        assert differs[0] == 0
        assert differs[1] > 1e-2


def test_untied_embeddings_have_names_of_their_own():
    cfg = plan("tp=1", ranks=1, overrides=("model.tie_embeddings=false", "model.share_embeddings=false")).base
    names = [name for name, _ in traced_modules(build_model(cfg, single_process(), device="meta", dtype=torch.float32))]
    assert {"encoder_embedding", "decoder_embedding"} <= set(names)
    assert "lm_head" not in names
