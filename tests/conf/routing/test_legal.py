"""Which routers and settings are refused, and what an error says."""

import pytest

from conf.compose import compose
from conf.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "field", "says"),
    [
        (["moe=hf", "moe.router=top_2"], "moe.router", "moe=mesh_tf or moe=flaxformer"),
        (["moe=paper", "moe.router=ntlb"], "moe.router", "that moe.semantics=paper defines: switch"),
        (["moe=flaxformer", "moe.router=ntlb"], "moe.router", "switch, top_2, switch_max, expert_choice"),
        (["moe.decoder_router=expert_choice"], "moe.decoder_router", "later tokens"),
        (["moe.top_k=2"], "moe.top_k", "needs 1 with moe.router=switch"),
        (["moe.router=switch_max", "moe.top_k=2"], "moe.top_k", "needs 1"),
        (["moe.router=ntlb", "moe.top_k=99"], "moe.top_k", "needs 1 to"),
        (["moe.padding=ignored"], "moe.padding", "moe=flaxformer"),
        (["moe.second_policy=threshold"], "moe.second_policy", "moe.router=top_2 under moe.semantics=mesh_tf"),
        (["moe=flaxformer", "moe.router=top_2", "moe.second_loss_weight=1"], "moe.second_loss_weight", "mesh_tf"),
        (["moe.router=swich_max"], "moe.router", "try moe.router=switch_max"),
        (["moe.decoder_router=ntlp"], "moe.decoder_router", "try moe.decoder_router=ntlb"),
        (["moe.router=top_2", "moe.num_experts=1"], "moe.num_experts", "at least 2 for top_2"),
        (["moe.router=top_2", "moe.second_threshold=0"], "moe.second_threshold", "above 0"),
        (["moe.router=top_2", "moe.second_loss_weight=-1"], "moe.second_loss_weight", "at least 0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_legal_values(overrides, field, says):
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert caught.value.field == field
    assert says in str(caught.value)
