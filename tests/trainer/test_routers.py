"""Every router but `switch`, which test_layouts.py trains, trains with its experts on two ranks as in one
process: losses and gradient norms of 4 steps."""

from tests.trainer.test_layouts import check

ROUTERS = {
    "top_2": ("moe.second_policy=random", "moe.second_threshold=0.4", "moe.second_loss_weight=0.5"),
    "switch_max": ("moe.decoder_router=switch_max",),
    "expert_choice": (),
    "ntlb": ("moe.top_k=2",),
}


def test_every_router_trains_at_ep_2_as_in_one_process():
    cases = [("expert", ("parallel.zero=1", f"moe.router={router}", *more)) for router, more in ROUTERS.items()]
    check(2, cases)
