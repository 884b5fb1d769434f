"""Composition: presets, what wins over what, quoting, the launcher's world, writing and reading, and no torch."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from conf.compose import compose, dump, load, to_dict
from conf.derived.layers import expert_layers, is_dense
from conf.errors import ConfigError, ConfigErrors
from conf.reading.presets import CONF_DIR, groups, presets
from conf.routing.references import SEMANTICS
from tests.conf.composed import composed

EVERY_PRESET = [(group, name) for group in groups() for name in presets(group)]
# what a preset needs besides itself on a machine with the default two ranks
COMPANY = {
    ("data", "text"): ["data.files=HERE/*.txt"],
    ("data", "shards"): ["data.files=HERE"],
    ("parallel", "expert_model_data"): ["launch.nproc=4"],
    ("optim", "adafactor"): ["parallel.zero=0"],
}


def test_the_default_run():
    cfg = compose([])
    assert (cfg.model.preset, cfg.data.source, cfg.train.precision) == ("small", "stdlib", "fp32")
    assert (cfg.launch.nproc, cfg.parallel.tp, cfg.parallel.ep, cfg.parallel.zero) == (2, 1, 2, 1)
    assert (cfg.data.encoder_length, cfg.data.decoder_length) == (24, 6)
    assert None not in (cfg.moe.group_sequences, cfg.parallel.etp, cfg.train.eval_every, cfg.train.save_every)


def test_a_run_that_ends_by_tokens_warms_up_and_evaluates_by_its_length():
    per_step = 128 * (24 + 6)
    cfg = compose(["train.steps=null", f"train.tokens={per_step * 400}"])
    assert cfg.schedule.name == "wsd"  # which decays to the step that the tokens imply
    assert (cfg.schedule.warmup_steps, cfg.train.eval_every, cfg.train.save_every) == (40, 40, 100)


def test_the_fourth_quarter_of_a_run_ends_with_the_run():
    """Not two checkpoints in its last steps."""
    assert [compose([f"train.steps={steps}"]).train.save_every for steps in (1, 5, 750, 752)] == [1, 2, 188, 188]


@pytest.mark.parametrize(("group", "name"), EVERY_PRESET, ids=["=".join(pair) for pair in EVERY_PRESET])
def test_every_preset_composes(group, name, tmp_path):
    for file in ("a.txt", "index.json"):
        (tmp_path / file).touch()
    cfg = compose([f"{group}={name}", *(o.replace("HERE", str(tmp_path)) for o in COMPANY.get((group, name), []))])
    if group == "model":
        expected = {"t5_v1_1_3b": "t5_v1_1_xl", "t5_v1_1_11b": "t5_v1_1_xxl"}.get(name, name)
        assert cfg.model.preset in (name, expected)
    if group == "schedule":
        assert cfg.schedule.name == {"t5": "rsqrt"}.get(name, name)
    if group == "moe":
        assert cfg.moe.semantics == ("mesh_tf" if name == "dense" else name)
        assert is_dense(cfg) == (name == "dense")


@pytest.mark.parametrize(("model", "moe"), itertools.product(["switch_base_8", "switch_c_2048"], SEMANTICS))
def test_a_semantics_and_a_switch_preset_go_together(model, moe):
    cfg = compose([f"model={model}", f"moe={moe}"])
    published = composed(f"model={model}")
    assert cfg.moe.semantics == moe
    assert (cfg.moe.num_experts, cfg.moe.sparse_every) == (published.moe.num_experts, published.moe.sparse_every)
    assert cfg.moe.capacity_factor == published.moe.capacity_factor
    # Hugging Face's capacity is a number of its own, the others' a property of the model
    assert cfg.moe.min_expert_capacity == (64 if moe in ("hf", "hf_4") else published.moe.min_expert_capacity)


@pytest.mark.parametrize("model", ["small", "switch_base_8", "switch_large_128", "switch_c_2048"])
def test_every_preset_has_a_dense_twin_of_the_same_shape(model):
    switch, dense = composed(f"model={model}"), composed(f"model={model}", "moe=dense")
    assert dense.model == switch.model
    assert is_dense(dense)
    assert not is_dense(switch)
    assert dense.parallel.ep == 1


def test_a_t5_is_dense_under_every_semantics_and_takes_experts_on_request():
    assert is_dense(compose(["model=t5_small"]))
    assert is_dense(compose(["model=t5_v1_1_3b", "moe=hf"]))
    cfg = compose(["model=t5_small", "moe.sparse_every=2"])
    assert [layer.name for layer in expert_layers(cfg.model, cfg.moe) if layer.experts == 8] == [
        f"{stack}.{index}" for stack in ("encoder", "decoder") for index in (1, 3, 5)
    ]
    assert cfg.parallel.ep == 2


def test_what_is_typed_wins_over_every_preset():
    typed = ["moe.num_experts=4", "moe.min_expert_capacity=3", "data.encoder_length=64", "model.d_ff=96"]
    for order in (["model=switch_c_2048", "moe=hf", *typed], [*typed, "model=switch_c_2048", "moe=hf"]):
        cfg = compose(order)
        assert (cfg.moe.num_experts, cfg.moe.min_expert_capacity) == (4, 3)
        assert (cfg.data.encoder_length, cfg.model.d_ff) == (64, 96)


def test_t5_lengths_of_the_paper():
    cfg = compose(["model=t5_base"])
    assert (cfg.data.encoder_length, cfg.data.decoder_length, cfg.model.vocab_size) == (512, 114, 32128)


LAYOUTS = [
    # preset, ranks per node, (tp, dp, ep, etp) as in docs/adr/004
    ("data", 4, (1, 4, 1, 1)),
    ("model", 4, (4, 1, 1, 4)),
    ("model_data", 4, (2, 2, 1, 2)),
    ("expert_data", 4, (1, 4, 4, 1)),
    ("expert_model_data", 4, (2, 2, 2, 2)),
    ("default", 4, (1, 4, 4, 1)),
]


@pytest.mark.parametrize(
    ("overrides", "ep"),
    [
        (["launch.nproc=1"], 1),
        (["launch.nproc=2"], 2),
        (["launch.nproc=6", "train.global_batch=24"], 2),  # of 8 experts
        (["launch.nproc=4", "parallel.tp=2"], 2),
        (["launch.nproc=4", "moe=dense"], 1),
        (["launch.nproc=4", "parallel.ep=1"], 1),
    ],
)
def test_experts_spread_over_as_many_ranks_as_divide_them(overrides, ep):
    assert compose(overrides).parallel.ep == ep


@pytest.mark.parametrize(("layout", "nproc", "axes"), LAYOUTS, ids=[row[0] for row in LAYOUTS])
@pytest.mark.parametrize("started_by", ["override", "launcher"])
def test_the_layouts_of_section_5(layout, nproc, axes, started_by):
    if started_by == "override":
        cfg = compose([f"parallel={layout}", f"launch.nproc={nproc}"])
    else:
        cfg = compose([f"parallel={layout}"], world=(nproc, nproc))
    tp, ep, etp = cfg.parallel.tp, cfg.parallel.ep, cfg.parallel.etp
    assert (tp, nproc // tp, ep, etp) == axes


def test_the_world_of_a_launcher_takes_the_place_of_launch():
    cfg = compose([], world=(8, 4))
    assert (cfg.launch.nproc, cfg.launch.nodes) == (4, 2)
    cfg = compose(["launch=slurm"], world=(4, 2))
    assert (cfg.launch.launcher, cfg.launch.nproc, cfg.launch.nodes) == ("slurm", 2, 2)


def test_a_world_that_contradicts_the_user_is_refused():
    assert compose(["launch.nproc=4"], world=(4, 4)).launch.nproc == 4
    with pytest.raises(ConfigError, match="needs 2 ranks in all") as caught:
        compose(["launch.nproc=4"], world=(2, 2))
    assert caught.value.field == "launch.nproc"
    with pytest.raises(ConfigError, match="same number on each node"):
        compose([], world=(5, 2))


@pytest.mark.parametrize(
    ("typed", "files"),
    [
        ("docs/*.jsonl", ("docs/*.jsonl",)),
        ("a b.txt,c=d.txt", ("a b.txt", "c=d.txt")),
        ("'docs/[ab]{1,2}?.txt'", ("docs/[ab]{1,2}?.txt",)),
        ("['docs/{a,b}.txt',c]", ("docs/{a,b}.txt", "c")),
        ("it's.txt", ("it's.txt",)),
        (r"back\slash.txt", (r"back\slash.txt",)),
        ("'a,b','c'", ("a,b", "c")),
        ("", ()),
    ],
)
def test_lists_of_files_need_no_second_quoting(typed, files):
    from conf.reading.convert import to_config
    from conf.reading.overrides import read_overrides

    tree = to_dict(composed())
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (line,) = read_overrides([f"data.files={typed}"]).lines
    tree["data"]["files"] = OverridesParser.create().parse_override(line).value()
    assert to_config(tree).data.files == files


def test_free_text_stays_text():
    cfg = compose(["name=2024", "logging.wandb_project=a b, c", "launch.slurm_time=02:00:00"])
    assert (cfg.name, cfg.logging.wandb_project, cfg.launch.slurm_time) == ("2024", "a b, c", "02:00:00")
    assert compose(["name=null"]).name is None


def test_writing_and_reading_give_the_same_run(tmp_path):
    cfg = compose(["model=switch_base_8", "name=x", "schedule.lr=1e-4", "moe.jitter=1e-2", "data.hub_revision=0123"])
    dump(cfg, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == cfg
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_run_on_files_that_are_gone_can_still_be_read(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("words")
    cfg = compose(["data=text", f"data.files={text}"])
    dump(cfg, tmp_path / "config.yaml")
    text.unlink()
    assert load(tmp_path / "config.yaml").data.files == (str(text),)


def test_a_written_configuration_holds_no_secret_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    dump(compose(["data.text_field=run-0123456789abcdef"]), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "0123456789abcdef" not in text
    assert "[redacted]" in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("model: {_target_: os.system, preset: x}", r"model\._target_.*never runs code"),
        ("name: [1", "YAML"),
        ("- 1", r"config\.yaml: got \[1\]; needs the settings of a run"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, content, says):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises((ConfigError, ConfigErrors), match=says):
        load(tmp_path / "config.yaml")


def test_a_missing_file():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml.*no such file"):
        load("nowhere.yaml")


def test_no_preset_names_a_target():
    for path in CONF_DIR.rglob("*.yaml"):
        assert "_target_" not in path.read_text(), path


def test_composing_needs_no_torch_writes_nothing_and_is_quick(tmp_path):
    program = (
        "import sys, time; start = time.process_time()\n"
        "from conf.compose import compose\n"
        "from launch.describe import describe\n"
        "describe(compose(['model=switch_c_2048']))\n"
        "heavy = {'torch', 'numpy', 'deepspeed', 'megatron', 'datasets', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 10  # seconds of CPU; 0.7 on an idle machine
    assert list(tmp_path.iterdir()) == []


def test_relative_files_are_written_down_as_absolute_ones(tmp_path, monkeypatch):
    for name in ("a.txt", "held.md"):
        (tmp_path / name).write_text("text")
    monkeypatch.chdir(tmp_path)
    cfg = compose(["data=text", "data.files=*.txt", "data.validation_files=held.md"])
    assert cfg.data.files == (str(tmp_path / "*.txt"),)
    assert cfg.data.validation_files == (str(tmp_path / "held.md"),)


def test_a_written_run_can_be_looked_at_on_other_data(tmp_path):
    cfg = compose(["data.sentinels=20"])
    dump(cfg, tmp_path / "config.yaml")
    other = load(tmp_path / "config.yaml", overrides=["data.files=a.txt", "data=text", "data.seed=7"])
    assert (other.data.source, other.data.files[0].rpartition("/")[2], other.data.seed) == ("text", "a.txt", 7)
    assert other.data.sentinels == 20  # nothing else of the preset replaces what the run was trained with
    assert load(tmp_path / "config.yaml", overrides=["data=c4"]).data.hub_path == "allenai/c4"


@pytest.mark.parametrize(
    ("override", "says"),
    [("model=switch_base_8", "single values of a written configuration"), ("data=nothing", "one of c4, mc4")],
)
def test_a_written_run_keeps_its_other_presets(tmp_path, override, says):
    dump(compose([]), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=says):
        load(tmp_path / "config.yaml", overrides=[override])


@pytest.mark.parametrize(
    "text", ["'a", '"a', "[a", "{a", "!a", "*a", "&a", "%a", "@a", "`a", "|", ">", "???", "- a", "a: b", "? a", "#"]
)
def test_a_written_run_takes_paths_as_a_fresh_one_does(tmp_path, text):
    """None of them is YAML, which would make an error, another value or none of them."""
    dump(compose([]), tmp_path / "config.yaml")
    other = load(tmp_path / "config.yaml", overrides=["data=text", f"data.files={text}"])
    assert [path.removeprefix(f"{Path.cwd()}/") for path in other.data.files] == [text]


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("data.seed=1:30", "data.seed"),
        ("data.seed=0x10", "data.seed"),
        ("train.eval_batches=[1", "train.eval_batches"),
        ("train.eval_batches=???", "train.eval_batches"),
        ("train.eval_batches=${seed}", "train.eval_batches"),
        ("train.eval_batches.x=1", "train.eval_batches.x"),
        ("data.text_field=${oc.env:HOME}", "data.text_field"),
        ("data.text_field=a\nb", "data.text_field"),
        ("~data.seed=1", "data.seed"),
        ("data.seed", "data.seed"),
        ("=1", "=1"),
    ],
)
def test_a_written_run_refuses_what_a_fresh_one_does(tmp_path, override, field):
    dump(compose([]), tmp_path / "config.yaml")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "config.yaml", overrides=[override])
    assert caught.value.field == field
