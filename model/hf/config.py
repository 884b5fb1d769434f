"""Hugging Face's config.json in our settings and back, and what of it we cannot follow.

Keys that are absent take the library's defaults. What changes the numbers and has no counterpart here is refused by
name; what does not is ignored.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from conf.derived.groups import expert_capacity
from conf.derived.layers import is_dense, stacks
from conf.errors import ConfigError, ConfigErrors
from conf.routing.settings import moe_rules
from conf.schema import Ffn, RunConfig, Stack
from model.hf.files import read_json
from model.hf.names import Kind

CLASSES: dict[Kind, str] = {
    "t5": "T5ForConditionalGeneration",
    "switch_transformers": "SwitchTransformersForConditionalGeneration",
}
# model_type of a config.json -> what computes the same, and its own class. UL2 and FLAN are T5 by name.
_TYPES: dict[str, tuple[Kind, str]] = {
    **{kind: (kind, name) for kind, name in CLASSES.items()},
    "mt5": ("t5", "MT5ForConditionalGeneration"),
}
EOS = 1  # the id that ends a sequence, in every released model and here
_OTHER_NAMES = {"T5WithLMHeadModel": "T5ForConditionalGeneration"}  # of the released T5 files
# (library's key, ours, type, library's default); no default: the key must be there
_SIZES = (
    ("vocab_size", "vocab_size", int, None),
    ("d_model", "d_model", int, None),
    ("d_ff", "d_ff", int, None),
    ("d_kv", "d_kv", int, 64),
    ("num_heads", "num_heads", int, None),
    ("num_layers", "num_encoder_layers", int, None),
    ("relative_attention_num_buckets", "relative_buckets", int, 32),
    ("relative_attention_max_distance", "relative_max_distance", int, 128),
    ("layer_norm_epsilon", "norm_epsilon", float, 1e-6),
    ("dropout_rate", "dropout", float, 0.1),
)
_ROUTER = (
    ("num_experts", "num_experts", int, 8),
    ("expert_capacity", "min_expert_capacity", int, 64),
    ("router_jitter_noise", "jitter", float, 0.01),
    ("router_aux_loss_coef", "aux_loss_weight", float, 0.001),
    ("router_z_loss_coef", "z_loss_weight", float, 0.001),
)
# Our activation, without or with a gate -> the library's name of it; below, all its names of the same function.
_ACTIVATIONS: dict[str, str] = {"relu": "relu", "gelu": "gelu_new", "gelu_erf": "gelu", "silu": "silu"}
_SAME = {name: ours for ours, name in _ACTIVATIONS.items()} | {
    "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu_python": "gelu_erf", "swish": "silu",
}  # fmt: skip
_GATED = "gated_"
_LARGEST_FACTOR = 1e15  # its square is model.init_scale, which may be 1e30
_STACK_PREFIX: dict[Stack, str] = {"encoder": "", "decoder": "decoder_"}
# Values that the model's arithmetic is written for; another one would silently change what it computes.
_FIXED: tuple[tuple[str, Any], ...] = (
    ("is_encoder_decoder", True),
    ("pad_token_id", 0),
    ("decoder_start_token_id", 0),
    ("quantization_config", None),
)
_FIXED_ROUTER: tuple[tuple[str, Any], ...] = (("router_bias", False), ("router_dtype", "float32"))


@dataclass(frozen=True, kw_only=True, slots=True)
class HfConfig:
    """A config.json as far as it decides what the model computes."""

    path: Path
    kind: Kind
    model_type: str  # "mt5" is of kind t5
    version: str  # of the library that wrote it; "unknown"
    model: dict[str, Any]  # fields of `ModelConfig`, without what only the tensors can tell (tying)
    moe: dict[str, Any]  # fields of `MoeConfig`; empty for T5
    may_tie: bool  # the output matrix is the embedding, unless the tensors differ
    scaled: bool  # the decoder's output is multiplied by d_model**-0.5 before the logits
    ties_by_tensors: bool  # of a head that differs the version that wrote the file makes an untied model
    ignored: tuple[str, ...]  # keys and files that name code, which is never run
    eos: Any  # the id that ends a sequence there


def read_config(folder: Path) -> HfConfig:
    """Read and check config.json.

    Raises CheckpointError for a file that is no JSON object, ConfigError naming a key that cannot be followed.
    """
    path = folder / "config.json"
    document = read_json(path)
    kind, model_type = _kind(path, document)
    sizes = {ours: _value(path, document, key, wanted, usual) for key, ours, wanted, usual in _SIZES}
    decoder = _value(path, document, "num_decoder_layers", int, sizes["num_encoder_layers"])
    _check_fixed(path, document, _FIXED + (_FIXED_ROUTER if kind == "switch_transformers" else ()))
    dropout = sizes["dropout"]
    factor = float(_value(path, document, "initializer_factor", float, 1.0))
    if not 0 <= factor <= _LARGEST_FACTOR:
        raise ConfigError(f"{path}: initializer_factor", got=factor, needs=f"a number from 0 to {_LARGEST_FACTOR:g}")
    model = {
        **sizes,
        "num_decoder_layers": decoder,
        "ffn": _ffn(path, document, model_type),
        "attention_dropout": dropout,  # one rate for all in the library
        "init_scale": factor**2,
    }
    moe: dict[str, Any] = {"sparse_every": 0, "decoder_sparse_every": 0}
    if kind == "switch_transformers":
        moe = {ours: _value(path, document, key, wanted, usual) for key, ours, wanted, usual in _ROUTER}
        moe |= {
            "sparse_every": sparse_step(path, document, "encoder", sizes["num_encoder_layers"]),
            "decoder_sparse_every": sparse_step(path, document, "decoder", decoder),
            "expert_dropout": dropout,
            "group_sequences": 1,
        }
        if not moe["sparse_every"] and not moe["decoder_sparse_every"]:
            needs = "a layer with experts in one of the stacks: without any it is a T5"
            raise ConfigError(f"{path}: num_sparse_decoder_layers", got=0, needs=needs)
    version = str(document.get("transformers_version", "unknown"))
    return HfConfig(
        path=path,
        kind=kind,
        model_type=model_type,
        version=version,
        model=model,
        moe=moe,
        **_tying(path, document, model_type, version),
        eos=document.get("eos_token_id", EOS),
        ignored=(*(["auto_map"] if "auto_map" in document else ()), *sorted(p.name for p in folder.glob("*.py"))),
    )


def _tying(path: Path, document: dict[str, Any], model_type: str, version: str) -> dict[str, bool]:
    """What config.json says of embedding and output matrix: `may_tie`, `scaled`, `ties_by_tensors`.

    5.x ties every T5 unless the tensors differ, whatever its config says, scales a T5 by a key of its own, which only
    it writes, and an mT5 never. 4.x scales what it ties.
    """
    is_5 = version.startswith("5.")
    says_tied = _value(path, document, "tie_word_embeddings", bool, model_type != "mt5" or is_5)
    if model_type == "mt5" and is_5:
        return {"may_tie": True, "scaled": False, "ties_by_tensors": True}
    own = _value(path, document, "scale_decoder_outputs", bool, None) if model_type == "t5" else None
    if own is not None:
        return {"may_tie": True, "scaled": own, "ties_by_tensors": True}
    return {"may_tie": says_tied, "scaled": says_tied, "ties_by_tensors": is_5}


def _kind(path: Path, document: dict[str, Any]) -> tuple[Kind, str]:
    kind = document.get("model_type")
    listed = document.get("architectures") or []
    if not isinstance(listed, list):
        raise ConfigError(f"{path}: architectures", got=listed, needs="a list of class names")
    named = [_OTHER_NAMES.get(str(name), str(name)) for name in listed]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ConfigError(f"{path}: model_type", got=kind, needs=f"one of {', '.join(_TYPES)}")
    ours, class_name = _TYPES[kind]
    if named and class_name not in named and CLASSES[ours] not in named:
        needs = f"{class_name}: an encoder, a decoder and an output matrix"
        raise ConfigError(f"{path}: architectures", got=named, needs=needs)
    return ours, kind


def _value(path: Path, document: dict[str, Any], key: str, wanted: type, usual: Any) -> Any:
    value = document.get(key)
    if value is None:
        if key == "tie_word_embeddings" and key in document:
            raise ConfigError(f"{path}: {key}", got=None, needs="true or false: the library's versions read null apart")
        if usual is None and wanted is not bool:
            raise ConfigError(f"{path}: {key}", got="nothing", needs=f"a number: {key} of the model")
        return usual
    if wanted is float and type(value) is int and abs(value) < sys.float_info.max:
        value = float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{path}: {key}", got=value, needs=f"a {wanted.__name__}")
    return value


def _check_fixed(path: Path, document: dict[str, Any], fixed: tuple[tuple[str, Any], ...]) -> None:
    for key, needed in fixed:
        if (got := document.get(key)) is not None and got != needed:
            raise ConfigError(f"{path}: {key}", got=got, needs=f"{needed!r}: nothing else is computed here")


def _ffn(path: Path, document: dict[str, Any], model_type: str) -> Ffn:
    """Which feed-forward layer. The library's Switch has no gate, whatever config.json says of one.

    For the others feed_forward_proj gives activation and gate ("gated-gelu" the tanh form of GELU), over which
    dense_act_fn and is_gated_act win where they are written.
    """
    projection = document.get("feed_forward_proj", "gated-gelu" if model_type == "mt5" else "relu")
    if model_type == "switch_transformers":
        key, activation, gated = "dense_act_fn", document.get("dense_act_fn", "relu"), False
    else:
        if not isinstance(projection, str):
            raise ConfigError(f"{path}: feed_forward_proj", got=projection, needs="a name such as gated-gelu")
        *gate, activation = projection.split("-")
        if gate not in ([], ["gated"]):
            raise ConfigError(f"{path}: feed_forward_proj", got=projection, needs="ACTIVATION or gated-ACTIVATION")
        activation = "gelu_new" if projection == "gated-gelu" else activation
        gated = _value(path, document, "is_gated_act", bool, bool(gate))
        key = "feed_forward_proj" if document.get("dense_act_fn") is None else "dense_act_fn"
        activation = document.get("dense_act_fn") or activation
    if not isinstance(activation, str) or activation not in _SAME:
        raise ConfigError(f"{path}: {key}", got=activation, needs=f"an activation of {', '.join(_SAME)}")
    return cast(Ffn, _GATED * gated + _SAME[activation])


def _theirs(ffn: Ffn) -> tuple[str, str]:
    """Their names (feed_forward_proj, dense_act_fn) of our form."""
    gated, activation = ffn.startswith(_GATED), _ACTIVATIONS[ffn.removeprefix(_GATED)]
    return ("gated-" * gated + ("gelu" if activation == "gelu_new" and gated else activation)), activation


def sparse_step(path: Path, document: dict[str, Any], stack: Stack, layers: int) -> int:
    """n of the rule that layer i is sparse iff i % n == 1 or n == 1; 0: none is, as for more sparse layers than layers.

    Where the step is written it wins, as in the library.
    """
    sparse = _value(path, document, f"num_sparse_{stack}_layers", int, 3)
    step = _value(path, document, f"{stack}_sparse_step", int, layers // sparse if sparse > 0 else layers)
    if step < 0:
        raise ConfigError(f"{path}: {stack}_sparse_step", got=step, needs="at least 0, which is no layer with experts")
    return 0 if layers == 1 and step > 1 else step


def check_counts(hf: HfConfig, tensors: int) -> None:
    """Refuse more layers or experts than the folder has tensors, before anything of that size is made."""
    counts = {
        f"num_{stack}layers": hf.model[f"num_{ours}_layers"]
        for stack, ours in (("", "encoder"), ("decoder_", "decoder"))
    }
    for key, count in {**counts, "num_experts": hf.moe.get("num_experts", 0)}.items():
        if count > max(tensors, 1_000):  # fewer: the tensors that are missing are named
            raise ConfigError(f"{hf.path}: {key}", got=count, needs=f"less than the {tensors} tensors of the folder")


def in_their_words(path: Path, error: ConfigError | ConfigErrors, own: Collection[str]) -> ConfigError | ConfigErrors:
    """A refusal of our settings as one of config.json's keys; `own` are settings that the user gave, left as they are.

    What to try instead goes: another value would make another model than the one of the file.
    """
    theirs = {f"model.{ours}": key for key, ours, _, _ in _SIZES} | {f"moe.{ours}": key for key, ours, _, _ in _ROUTER}
    theirs |= {f"moe.{prefix}sparse_every": f"num_sparse_{stack}_layers" for stack, prefix in _STACK_PREFIX.items()}
    theirs |= {"model.attention_dropout": "dropout_rate", "moe.expert_dropout": "dropout_rate"}
    theirs |= {"model.init_scale": "initializer_factor"}
    found: dict[str, ConfigError] = {}
    for one in error.errors if isinstance(error, ConfigErrors) else (error,):
        key = None if one.field in own else theirs.get(one.field)
        if key is None:
            found[one.field] = one
        else:
            needs = f"{one.needs} (it becomes {one.field})"
            found.setdefault(key, ConfigError(f"{path}: {key}", got=one.got, needs=needs))
    return next(iter(found.values())) if len(found) == 1 else ConfigErrors(list(found.values()))


def followed_version(cfg: RunConfig) -> str:
    """The version of the library that computes what an export means; import picks the semantics by it.

    Only 5.x has T5 tied without scaling or with an embedding per stack, and either model scaled without tying.
    """
    model, scaled = cfg.model, cfg.model.logit_scale == "width"
    only_5 = scaled and not model.tie_embeddings
    if is_dense(cfg):
        only_5 = scaled != model.tie_embeddings or not model.share_embeddings
    return "4.57.6" if cfg.moe.semantics == "hf_4" and not only_5 else "5.23.0"


def to_document(cfg: RunConfig, *, kind: Kind, dtype: torch.dtype, copies_head: bool) -> dict[str, Any]:
    """The config.json that makes the library compute what our model computes, as far as it can.

    `copies_head`: a Switch model whose output matrix is the unscaled embedding, which the library cannot tie.
    """
    model = cfg.model
    scaled, tied = model.logit_scale == "width", model.tie_embeddings
    document: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": model.vocab_size,
        "d_model": model.d_model,
        "d_ff": model.d_ff,
        "d_kv": model.d_kv,
        "num_heads": model.num_heads,
        "num_layers": model.num_encoder_layers,
        "num_decoder_layers": model.num_decoder_layers,
        "relative_attention_num_buckets": model.relative_buckets,
        "relative_attention_max_distance": model.relative_max_distance,
        "layer_norm_epsilon": model.norm_epsilon,
        "dropout_rate": model.dropout,
        "initializer_factor": model.init_scale**0.5,
        "dense_act_fn": _theirs(model.ffn)[1],
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "use_cache": True,
        "transformers_version": followed_version(cfg),
        "dtype": str(dtype).removeprefix("torch."),
        # The library reads this key as "scale the decoder's output" as well; what is tied it sees from the tensors.
        "tie_word_embeddings": scaled if kind == "switch_transformers" or not tied else True,
    }
    if kind == "t5":
        document |= {"feed_forward_proj": _theirs(model.ffn)[0], "is_gated_act": model.ffn.startswith(_GATED)}
        if scaled != document["tie_word_embeddings"]:
            document["scale_decoder_outputs"] = scaled
        return document
    assert not (tied and not scaled) or copies_head, "the library ties only scaled output matrices"
    return document | _router_document(cfg)


def _router_document(cfg: RunConfig) -> dict[str, Any]:
    moe, model = cfg.moe, cfg.model
    document: dict[str, Any] = {
        "num_experts": moe.num_experts,
        "expert_capacity": sequence_capacity(cfg),
        "router_bias": False,
        "router_dtype": "float32",
        "router_ignore_padding_tokens": False,
        "router_jitter_noise": moe.jitter,
        "router_aux_loss_coef": moe.aux_loss_weight,
        "router_z_loss_coef": moe_rules(moe, "encoder").losses.z_weight,
        "add_router_probs": False,
    }
    for stack, layers in stacks(model, moe).items():
        sparse = tuple(layer.index for layer in layers if layer.experts)
        number, step = sparse_numbers(sparse, len(layers), stack)
        document |= {f"num_sparse_{stack}_layers": number, f"{stack}_sparse_step": step}
    return document


def sparse_numbers(sparse: tuple[int, ...], layers: int, stack: str) -> tuple[int, int]:
    """(number of sparse layers, step) with which the library makes exactly the layers `sparse`.

    Prefers a step that follows from the number, since that is what the library computes where no step is written.
    """
    steps = [s for s in range(layers + 2) if tuple(i for i in range(layers) if s and (i % s == 1 or s == 1)) == sparse]
    for step in steps:
        for number in range(1, layers + 2):
            if layers // number == step:
                return number, step
    if steps:
        return len(sparse), steps[0]
    raise ConfigError(
        "moe.sparse_every",
        got=f"{stack} layers {', '.join(map(str, sparse)) or 'none'} with experts",
        needs="a layout that the library can build: layers i with i % n == 1, or every layer",
        hint="a model with moe.sparse_every=1 or 2, or one trained with moe=hf",
    )


def sequence_capacity(cfg: RunConfig) -> int:
    """Slots of one expert for one sequence, the library's only notion of capacity; of evaluation where ours varies."""
    return expert_capacity(cfg.moe, cfg.data.encoder_length, train=False)
