"""Errors, ties and findings, against loops a reader can check."""

import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from measure.verify.compare import LIMITS, TIE, Findings, Ledger, near_ties
from measure.verify.observe.numbers import StepNumbers
from measure.verify.observe.record import Decision
from measure.verify.reference.step_file import ReferenceStep, write_step
from measure.verify.run_layout import NO_TIE
from measure.verify.run_plan import begins_with_ties, missing


def ledger() -> Ledger:
    return Ledger(LIMITS["fp32"])


def test_a_tensors_error_is_a_share_of_the_references_largest():
    book = ledger()
    book.tensor("gradient", torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]), 10.0, step=3, where="w", at=7)
    worst = book.findings.worst["gradient"]
    assert (worst.error, worst.where, worst.step, worst.position) == (0.05, "w", 3, 7)
    assert book.findings.first == worst


@pytest.mark.parametrize(("ours", "theirs", "expected"), [(0.0, 0.0, 0.0), (1e-9, 0.0, math.inf), (1.1, 1.0, 0.1)])
def test_errors_of_numbers(ours, theirs, expected):
    book = ledger()
    book.number("loss", ours, theirs, step=0)
    assert book.findings.worst["loss"].error == pytest.approx(expected)


def test_a_limit_of_ones_own_takes_the_place_of_the_quantitys():
    book = Ledger(LIMITS["bf16"])
    one = torch.ones(2)
    book.tensor("parameter", one * 1.001, one, 1.0, step=-1, where="w", at=7, limit=0.0)
    book.tensor("parameter", one * 1.01, one, 1.0, step=0, where="v", at=3)
    assert book.findings.first is not None
    assert (book.findings.first.where, book.findings.first.step) == ("w", -1)
    assert book.findings.worst["parameter"].where == "v"


def test_what_is_not_a_number_differs():
    book = ledger()
    book.tensor("gradient", torch.tensor([math.nan]), torch.tensor([1.0]), 1.0, step=0, where="w", at=0)
    assert book.findings.first is not None
    assert book.findings.first.error == math.inf


def test_the_first_to_differ_is_the_cause_not_the_largest():
    book = ledger()
    book.number("norm", 2.0, 1.0, step=0)
    book.number("z", 1.001, 1.0, step=0, where="decoder.1", at=1)
    book.number("z", 1.001, 1.0, step=0, where="encoder.1", at=0)
    book.number("loss", 5.0, 1.0, step=1)
    first = book.findings.first
    assert first is not None
    assert (first.quantity, first.where, first.step) == ("z", "encoder.1", 0)


def test_an_unjudged_quantity_is_measured_only():
    book = Ledger(LIMITS["bf16"])
    book.number("moment", 2.0, 1.0, step=0)
    assert book.findings.first is None
    assert book.findings.worst["moment"].error == 1.0


def test_findings_of_ranks_join():
    one, two = ledger(), ledger()
    one.number("loss", 1.001, 1.0, step=1)
    two.number("loss", 1.01, 1.0, step=0)
    two.findings.tokens.add((0, 1, 2, 3))
    two.findings.covered["gradient/w"] = {((0, 0), (2, 3))}
    joined = one.findings
    joined.join(two.findings)
    assert joined.worst["loss"].error == pytest.approx(0.01)
    assert joined.first is not None
    assert joined.first.step == 0
    assert joined.tokens == {(0, 1, 2, 3)}
    assert joined.covered == {"gradient/w": {((0, 0), (2, 3))}}


def naive_ties(logits, choices, text_order):
    """Token by token."""
    G, S, E = logits.shape
    p = logits.double().softmax(-1)
    found = torch.zeros(G, S, dtype=torch.bool)
    for g in range(G):
        for s in range(S):
            top = sorted(logits[g, s].double().tolist(), reverse=True)[: min(choices + 1, E)]
            close = any(a - b <= TIE for a, b in pairwise(top))
            for other in range(S) if not text_order else ():
                if other != s:
                    close |= abs(float(p[g, s].max() - p[g, other].max())) <= TIE
                    close |= bool(((logits[g, s] - logits[g, other]).double().abs() <= TIE).any())
            found[g, s] = close
    return found


@pytest.mark.parametrize("choices", [1, 2, 4])
@pytest.mark.parametrize("text_order", [True, False])
def test_ties_are_those_of_a_naive_loop(choices, text_order):
    generator = torch.Generator().manual_seed(choices)
    logits = torch.randint(0, 9, (2, 12, 4), generator=generator) / 3.0
    logits += torch.rand(2, 12, 4, generator=generator).round() * 0.5 * TIE
    expected = naive_ties(logits, choices, text_order)
    assert expected.any()
    assert not expected.all() or not text_order
    assert torch.equal(near_ties(logits, choices, text_order=text_order), expected)


def reference(folder, slots_GSK, logits_GSE) -> ReferenceStep:
    G = len(slots_GSK)
    tensors = {"slots/encoder.1": slots_GSK, "tokens/encoder.1": torch.zeros(G, 2, 1, dtype=torch.int64)}
    tensors |= {"logits/encoder.1": logits_GSE, "gradient/w": torch.ones(4, 3), "parameter/w": torch.ones(4, 3)}
    numbers = StepNumbers(loss=1.0, entered=1.0, aux=0.0, z=0.0, layer_aux={}, layer_z={})
    write_step(folder, 0, tensors, numbers, 1.0)
    return ReferenceStep(folder, 0)


def routed(folder, ours, theirs, logits, tie=None, choices=1) -> Findings:
    """Findings of one group of four tokens, number 1 of two in the reference."""
    both = torch.tensor([[0] * len(theirs), theirs]).unsqueeze(-1)
    book = Ledger(LIMITS["fp32"], tie=tie)
    decision = Decision(
        layer="encoder.1", groups=torch.tensor([1]), slots_GSK=torch.tensor([ours]).unsqueeze(-1),
        tokens_GEC=torch.zeros(1, 2, 1, dtype=torch.int64), logits_GSE=torch.tensor([logits]),
    )  # fmt: skip
    clear = [[9.0, *([0.0] * (len(logits[0]) - 1))]] * len(theirs)
    step = reference(folder, both, torch.tensor([clear, logits]))
    book.routing(decision, step, step=0, at=0, choices=choices, text_order=True)
    return book.findings


CLEAR, TIED = [1.0, 0.0], [1.0, 1.0 + 1e-6]


def test_equal_slots_are_no_finding(tmp_path):
    findings = routed(tmp_path, [0, 1, 2, 3], [0, 1, 2, 3], [TIED] * 4)
    assert (findings.first, findings.tokens) == (None, set())


def test_a_token_without_a_tie_is_a_difference(tmp_path):
    findings = routed(tmp_path, [0, 1, 2, 9], [0, 1, 2, 3], [CLEAR] * 4)
    assert findings.first is not None
    assert (findings.first.quantity, findings.first.error, findings.first.where) == ("routing", 1.0, "encoder.1")
    assert findings.tokens == {(0, 0, 1, 3)}
    assert not begins_with_ties(findings)


def test_a_tied_token_and_those_behind_it_are_excused(tmp_path):
    findings = routed(tmp_path, [0, 9, 2, 8], [0, 1, 2, 3], [CLEAR, TIED, CLEAR, CLEAR])
    assert findings.first is None
    assert findings.excused == findings.tokens == {(0, 0, 1, 1), (0, 0, 1, 3)}
    assert begins_with_ties(findings)


def test_a_tie_that_went_the_same_way_excuses_nobody(tmp_path):
    findings = routed(tmp_path, [0, 1, 2, 9], [0, 1, 2, 3], [TIED, TIED, CLEAR, CLEAR])
    assert findings.first is not None
    assert findings.excused == set()


def test_in_a_replay_no_tie_is_an_excuse(tmp_path):
    findings = routed(tmp_path, [0, 9, 2, 8], [0, 1, 2, 3], [CLEAR, TIED, CLEAR, CLEAR], tie=NO_TIE)
    assert findings.first is not None
    assert findings.first.error == 2.0
    assert findings.excused == set()


def test_a_tie_of_a_later_choice_counts_where_tokens_may_try_it(tmp_path):
    later = [[3.0, 2.0, 1.0, 1.0 + 1e-6, 0.0]] * 4
    assert routed(tmp_path, [0, 1, 2, 9], [0, 1, 2, 3], later, choices=1).excused == set()
    assert routed(tmp_path, [0, 1, 2, 9], [0, 1, 2, 3], later, choices=3).excused == {(0, 0, 1, 3)}


def test_places_like_the_first_are_kept_and_outputs_are_not_judged():
    book = Ledger(LIMITS["fp32"], output_limit=1e-5)
    for name, at in (("a", -1), ("b", -2), ("c", -3)):
        book.tensor("gradient", torch.ones(2), torch.ones(2) * (at + 2), 1.0, step=0, where=name, at=at)
    book.output(torch.ones(1, 4), torch.zeros(1, 4), 1.0, step=1, where="encoder.layers.1.ff", at=4)
    book.output(torch.ones(1, 4), torch.zeros(1, 4), 1.0, step=1, where="encoder.layers.0.ff", at=2)
    book.output(torch.ones(1, 4), torch.ones(1, 4), 1.0, step=0, where="shared", at=0)
    findings = book.findings
    assert findings.first is not None
    assert findings.first.where == "c"
    assert findings.same_as_first() == {"b", "c"}
    assert findings.output is not None
    assert (findings.output.where, findings.output.step) == ("encoder.layers.0.ff", 1)
    assert "output" not in findings.worst


def test_another_capacity_counts_every_token(tmp_path):
    step = reference(tmp_path, torch.zeros(2, 4, 1, dtype=torch.int64), torch.zeros(2, 4, 2))
    book = ledger()
    decision = Decision(
        layer="encoder.1", groups=torch.tensor([0]), slots_GSK=torch.zeros(1, 8, 1), tokens_GEC=torch.zeros(1, 2, 2),
        logits_GSE=torch.zeros(1, 8, 2),
    )  # fmt: skip
    book.routing(decision, step, step=0, at=0, choices=1, text_order=True)
    assert book.findings.worst["routing"].error == 8.0
    assert not begins_with_ties(book.findings)


def test_a_difference_before_the_tie_is_not_the_ties(tmp_path):
    findings = routed(tmp_path, [0, 9, 2, 3], [0, 1, 2, 3], [CLEAR, TIED, CLEAR, CLEAR])
    findings.tokens = {(1, *token[1:]) for token in findings.tokens}
    findings.excused = set(findings.tokens)
    book = ledger()
    book.number("loss", 2.0, 1.0, step=0)
    findings.join(book.findings)
    assert not begins_with_ties(findings)


def test_what_no_rank_holds_is_named(tmp_path):
    step = reference(tmp_path, torch.zeros(2, 4, 1, dtype=torch.int64), torch.zeros(2, 4, 2))
    whole = {((0, 0), (2, 3)), ((2, 0), (2, 3))}
    findings = Findings(covered={"gradient/w": set(whole), "parameter/w": set(whole)})
    assert missing(findings, step) == ""
    findings.covered["gradient/w"].pop()
    assert missing(findings, step) == "gradient of w: the ranks hold 6 of 12 elements"
    assert "no rank" in missing(Findings(covered={"gradient/w": whole}), step)


def test_files_of_a_step_are_read_in_parts(tmp_path):
    save_file({"unused": torch.zeros(1)}, tmp_path / "other.safetensors")
    step = reference(tmp_path, torch.zeros(2, 4, 1, dtype=torch.int64), torch.zeros(2, 4, 2))
    assert step.part("gradient", "w", (slice(1, 3), slice(0, 2))).shape == (2, 2)
    assert (step.shape("gradient", "w"), step.largest("gradient", "w"), step.norm) == ((4, 3), 1.0, 1.0)
    assert step.names("parameter") == ["w"]
