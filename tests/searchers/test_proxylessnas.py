import functools

from compsearch.testing import SearcherContract
from searchers.architecture import ArchitectureOptions
from searchers.cost_loss import CostLoss
from searchers.proxylessnas import ProxylessNAS

ARCHITECTURE = ArchitectureOptions(lr=0.1, beta1=0.0, beta2=0.999, init_std=1e-3)
COST_LOSS = CostLoss(form="absolute", weight=1.0, scale=0.2, exponent=0.3, reward_weight=0.5, reward_exponent=0.07)
SMALL = functools.partial(
    ProxylessNAS,
    estimator="full",
    update_every=5,
    architecture=ARCHITECTURE,
    cost_loss=COST_LOSS,
    reinforce_samples=4,
    reinforce_decay=0.9,
    num_samples=6,
    samples_per_step=4,
    fill_budget=True,
)


class TestFullGradient(SearcherContract):
    make = staticmethod(SMALL)


class TestTwoPath(SearcherContract):
    make = staticmethod(functools.partial(SMALL, estimator="two_path"))


class TestReinforce(SearcherContract):
    make = staticmethod(functools.partial(SMALL, estimator="reinforce"))
