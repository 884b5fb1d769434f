"""Wrong configurations: each error names the field, and says something a person can try."""

from __future__ import annotations

import pytest

from conf.compose import compose
from conf.errors import ConfigError, ConfigErrors
from conf.reading.fields import leaf_types
from conf.reading.presets import groups

# overrides, the field that the error names, what its text says besides (most often the value to try)
BAD = [
    # names
    ("moe.num_expert=8", "moe.num_expert", "try moe.num_experts"),
    ("num_experts=8", "num_experts", "try moe.num_experts"),
    ("model.num_experts=8", "model.num_experts", "try moe.num_experts"),
    ("train.step=10", "train.step", "try train.steps"),
    ("modle=small", "modle", "try model=small"),
    ("modle=t5_smal", "modle", "try model=t5_small"),
    ("optimizer=adamw", "optimizer", "try optim=adamw"),
    ("mode=train", "mode", "try `pointsman config"),
    ("modle.d_ff=5", "modle.d_ff", "try model.d_ff"),
    ("trian.stepps=5", "trian.stepps", "try train.steps"),
    ("parallel.data=4", "parallel.data", "try `pointsman config"),
    ("train.gradient=1", "train.gradient", "try `pointsman config"),
    ("logger=wandb", "logger", "try `pointsman config"),
    # what other projects call them
    ("train.batch_size=8", "train.batch_size", "try train.global_batch"),
    ("train.epochs=3", "train.epochs", "try train.steps or train.tokens"),
    ("data.max_seq_length=512", "data.max_seq_length", "try data.encoder_length"),
    ("train.label_smoothing=0.1", "train.label_smoothing", "needs to be left out: targets are not smoothed"),
    ("train.compile=true", "train.compile", "needs one of off, blocks, model"),
    ("optim.relative_step=true", "optim.relative_step", "try optim.scale_parameter"),
    ("optim.lr=0.1", "optim.lr", "try schedule.lr"),
    ("train.lr=0.1", "train.lr", "try schedule.lr"),
    ("train.seed=1", "train.seed", "try seed"),
    ("model.hidden_size=64", "model.hidden_size", "try model.d_model"),
    ("model.num_layers=2", "model.num_layers", "try model.num_encoder_layers and"),
    ("train.bf16=true", "train.bf16", "try train.precision=bf16"),
    ("moe.num_experts_per_tok=2", "moe.num_experts_per_tok", "try moe.top_k"),
    ("moe.expert_parallel_size=2", "moe.expert_parallel_size", "try parallel.ep"),
    ("+foo=1", "foo", "pointsman config"),
    ("hydra.run.dir=x", "hydra.run.dir", "existing field"),
    ("model=switch_bas_8", "model", "try model=switch_base_8"),
    ("model=_common", "model", "one of small"),
    ("model=dense", "model", "moe=dense"),
    ("model.moe=dense", "model.moe", "try moe=dense"),
    ("logging=off", "logging", "logging.wandb=off"),
    ("data=tex", "data", "try data=text"),
    ("schedule=cosin", "schedule", "try schedule=cosine"),
    ("parallel=expert", "parallel", "expert_model_data"),
    ("model._target_=os.system", "model._target_", "removing it"),
    # form
    ("train.steps", "train.steps", "key=value"),
    ("--multirun", "--multirun", "key=value"),
    ("--train.steps=5", "--train.steps", "; try train.steps=5"),
    ("train.steps=1,2", "train.steps", "sweeps"),
    ("train.steps=[1", "train.steps", "a whole number or null; try train.steps=8"),
    ("train.compile={", "train.compile", "one of off, blocks, model; try train.compile=off"),
    ("train.steps='3'", "train.steps", "; try train.steps=3"),
    ("train.steps=\u0663", "train.steps", "; try train.steps=3"),
    ("model.dropout='0.1'", "model.dropout", "; try model.dropout=0.1"),
    ("~train.steps", "train.steps", "key=value"),
    ("~train.steps=1", "train.steps", "cannot be deleted"),
    ("train.steps=${nowhere}", "train.steps", "nowhere"),
    ("train.steps=${oc.dict.values:train}", "train.steps", "got '${oc.dict.values:train}'; needs a reference that"),
    ("name=${oc.env:NOWHERE}", "name", "Environment variable 'NOWHERE' not found"),
    ("runs_dir=${train.steps.x}", "runs_dir", "; try the value itself, ${oc.env:NAME}"),
    ("TRAIN_STEPS=5", "TRAIN_STEPS", "; try train.steps"),
    ("moe.NUM_EXPERTS=8", "moe.NUM_EXPERTS", "; try moe.num_experts"),
    ("launch.slurm_mem=10G", "launch.slurm_mem", "sbatch takes it from SBATCH_MEM_PER_NODE"),
    # types
    ("train.steps=abc", "train.steps", "a whole number or null"),
    ("train.steps=1.5e3", "train.steps", "try train.steps=1500"),
    ("train.global_batch=null", "train.global_batch", "a whole number"),
    ("train.global_batch=true", "train.global_batch", "a whole number"),
    ("train.activation_checkpointing=1", "train.activation_checkpointing", "true or false"),
    ("schedule.lr=fast", "schedule.lr", "a number"),
    ("schedule.lr=nan", "schedule.lr", "a number"),
    ("schedule.lr=true", "schedule.lr", "a number"),
    ("train.precision=fp16", "train.precision", "bf16, fp32"),
    ("moe.router=swich", "moe.router", "try moe.router=switch"),
    ("parallel.zero=3", "parallel.zero", "0, 1, 2"),
    ("parallel.zero=true", "parallel.zero", "0, 1, 2"),
    ("runs_dir=null", "runs_dir", "text"),
    ("data.files=null", "data.files", "list of texts"),
    # ranges
    ("schedule.lr=0", "schedule.lr", "above 0"),
    ("train.steps=0", "train.steps", "try train.steps=1"),
    ("train.steps=null", "train.steps", "try train.steps=1000"),
    ("train.keep_last=0", "train.keep_last", "at least 1"),
    ("model.dropout=1.0", "model.dropout", "[0, 1)"),
    ("model.relative_buckets=3", "model.relative_buckets", "at least 4"),
    ("model.relative_max_distance=16", "model.relative_max_distance", "128"),
    ("moe.capacity_factor=0", "moe.capacity_factor", "try moe.capacity_factor=1.25"),
    ("moe.sparse_every=4", "moe.sparse_every", "try moe.sparse_every=2"),
    ("moe.sparse_every=3", "moe.sparse_every", "or moe.sparse_every=0 for none"),
    ("schedule.warmup_steps=751", "schedule.warmup_steps", "at most train.steps = 750"),
    ("launch.nproc=0 launch.threads_per_rank=1", "launch.nproc", "at least 1"),
    ("launch.rdzv_endpoint=node7", "launch.rdzv_endpoint", "node7:29500"),
    ("launch.rdzv_endpoint=node7:70000", "launch.rdzv_endpoint", "node7:29500"),
    ("launch.slurm_time=soon", "launch.slurm_time", "24:00:00"),
    ("name=a/b", "name", "try name=a-b"),
    ("name=..", "name", "try name=run"),
    ("seed=-1", "seed", "try seed=0"),
    ("train.resume=required", "name", "the run to resume"),
    # layout
    ("launch.nproc=3 train.global_batch=36 parallel.ep=2", "parallel.ep", "try parallel.ep=1, or launch.nproc=4"),
    ("launch.nproc=4 parallel.tp=3", "parallel.tp", "1, 2, 4"),
    ("parallel=expert_model_data", "parallel.ep", "launch.nproc=4"),
    ("launch.nproc=8 parallel.tp=4 parallel.etp=2", "parallel.etp", "try parallel.etp=4, or parallel.etp=1"),
    ("moe.num_experts=9 parallel.ep=2", "moe.num_experts", "try moe.num_experts=10, or parallel.ep=1"),
    ("moe=dense parallel.ep=2", "parallel.ep", "try parallel.ep=1"),
    ("parallel=model model.num_heads=3", "model.num_heads", "try model.num_heads=4"),
    ("parallel=model model.d_ff=33", "model.d_ff", "try model.d_ff=34"),
    ("parallel.zero=1 optim=adafactor", "parallel.zero", "try parallel.zero=0"),
    ("parallel=model launch.nproc=3 model.num_heads=6 model.d_ff=513", "model.vocab_size", "try model.vocab_size=8448"),
    ("launch.nproc=4 parallel.ep=4 moe.num_experts=6", "moe.num_experts", "try moe.num_experts=8, or parallel.ep=2"),
    ("parallel.etp=0", "parallel.etp", "try parallel.etp=1"),
    ("optim.name=adafactor parallel.zero=0", "optim.beta1", "optim=adafactor"),
    # batch and groups
    ("train.global_batch=33", "train.global_batch", "try train.global_batch=40"),
    ("train.accumulation=3", "train.global_batch", "try train.global_batch=144"),
    ("moe=dense train.global_batch=33", "train.global_batch", "try train.global_batch=34"),
    ("moe.group_sequences=3", "moe.group_sequences", "1, 2, 4, 8, 16, 32, 64"),
    ("launch.nproc=64", "moe.group_sequences", "try moe.group_sequences=2, or train.global_batch=256"),
    (
        "launch.nproc=4 parallel.tp=2 parallel.etp=1 train.global_batch=2",
        "train.global_batch",
        "try train.global_batch=16",
    ),
    # data
    ("data=text", "data.files", "docs/*.jsonl"),
    ("data.files=x.txt", "data.files", "try data=text"),
    ("data=shards", "data.files", "pointsman prepare"),
    ("data=c4 data.hub_path=null", "data.hub_path", "allenai/c4"),
    ("data=text data.files=nowhere/*.txt", "data.files", "'nowhere' does not exist"),
    ("data.tokenizer=nowhere.model", "data.tokenizer", "sentencepiece"),
    ("train.from_checkpoint=nowhere", "train.from_checkpoint", "checkpoint"),
    ("data.decoder_length=5", "data.decoder_length", "try data.decoder_length=6"),
    ("data.encoder_length=64 data.sentinels=2", "data.sentinels", "try data.sentinels=3"),
    ("data.noise_density=0.8", "data.mean_span_length", "data.noise_density=0.15"),
    ("data.noise_density=0", "data.noise_density", "(0, 0.9]"),
    ("model=switch_base_8 model.share_embeddings=false", "model.share_embeddings", "try model.tie_embeddings=false"),
    ("data.mean_span_length=0.5", "data.mean_span_length", "at least 1"),
    ("model.vocab_size=8000", "model.vocab_size", "try model.vocab_size=8100"),
    ("data=c4 launch.nproc=32 moe.group_sequences=1", "data.stream_lanes", "try data.stream_lanes=32"),
]


@pytest.mark.parametrize(("overrides", "field", "says"), BAD, ids=[row[0] for row in BAD])
def test_a_wrong_configuration_names_the_field_and_what_to_try(overrides, field, says):
    with pytest.raises(ConfigError) as caught:
        compose(overrides.split())
    assert caught.value.field == field
    assert says in str(caught.value)


# what the hints above advise, for those that are overrides as they stand
ADVICE = [(row[0], row[2].removeprefix("try ").split(", or ")[0]) for row in BAD if row[2].startswith("try ")]
ADVICE = [(bad, advice) for bad, advice in ADVICE if "=" in advice and "data=text" not in advice]


@pytest.mark.parametrize(("overrides", "advice"), ADVICE, ids=[" -> ".join(row) for row in ADVICE])
def test_following_the_advice_gives_a_run(overrides, advice):
    field = advice.partition("=")[0]
    typed = {override.partition("=")[0]: override for override in overrides.split()}
    kept = [line for key, line in typed.items() if key != field and (key in leaf_types() or key in groups())]
    assert compose([*kept, advice]).name is None or field == "name"


def test_all_problems_are_listed_at_once():
    with pytest.raises(ConfigErrors) as caught:
        compose(["train.global_batch=0", "model.dropout=2", "seed=-3", "schedule.lr=-1"])
    fields = {error.field for error in caught.value.errors}
    assert fields == {"train.global_batch", "model.dropout", "seed", "schedule.lr"}
    assert len(str(caught.value).splitlines()) == 4


def test_several_unknown_names_are_listed_at_once():
    with pytest.raises(ConfigErrors) as caught:
        compose(["moe.num_expert=8", "train.stepz=3"])
    assert [error.hint for error in caught.value.errors] == ["moe.num_experts", "train.steps"]


def test_rules_that_connect_fields_are_listed_together():
    with pytest.raises(ConfigErrors) as caught:
        compose(
            ["moe.num_experts=9", "parallel.ep=2", "data.encoder_length=64", "data.sentinels=2", "model.vocab_size=10"]
        )
    assert {error.field for error in caught.value.errors} == {"moe.num_experts", "data.sentinels", "model.vocab_size"}
