"""What is printed and written is what was measured."""

import json

from measure.speed.result import Row, markdown_table, text_table
from measure.speed.timing import Comparison

ROW = Row(
    benchmark="layer",
    case="expert layer",
    peer="dense layer",
    comparison=Comparison(ours=(0.003, 0.002, 0.004), peer=(0.002, 0.002, 0.002)),
    numbers={"tokens/s": 12345.6, "share": 0.25},
)


def test_json_keeps_every_measurement():
    tree = json.loads(json.dumps(ROW.to_json()))
    assert tree["ratio"] == 1.5
    assert tree["comparison"] == {"ours": [0.003, 0.002, 0.004], "peer": [0.002, 0.002, 0.002]}


def test_tables_show_ratio_spread_and_seconds():
    line = text_table([ROW]).splitlines()[1]
    for text in ("expert layer", "dense layer", "1.500", "1.250 .. 1.750", "3 ms", "2 ms", "tokens/s 12,346", "0.25"):
        assert text in line
    assert markdown_table([ROW]).splitlines()[2].count("|") == 9
