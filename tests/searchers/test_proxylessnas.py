import copy
import functools
import itertools
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from compsearch.budget import Budget, budget_from_ratio
from compsearch.candidates import Candidates
from compsearch.paths import PathState
from compsearch.space import ZERO, Block, BoolArray, FloatArray, IntArray, Operation, Policy, SearchSpace
from compsearch.testing import SearcherContract
from compsearch.toy import ToyCost, ToyEvaluator, ToySupernet, collaborators, toy_importance, toy_space
from compsearch.trial import Trial
from searchers.architecture import ArchitectureOptions
from searchers.cost_loss import CostLoss
from searchers.proxylessnas import ProxylessNAS
from searchers.random_search import RandomSearch
from searchers.uniform import Uniform

ARCHITECTURE = ArchitectureOptions(lr=0.1, beta1=0.0, beta2=0.999, init_std=1e-3, start="equal")
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


#: The toy supernet has time for a hundred updates.
COMPARED = functools.partial(
    SMALL, update_every=1, architecture=replace(ARCHITECTURE, lr=0.2), cost_loss=replace(COST_LOSS, weight=0.3)
)


class TestFullGradient(SearcherContract):
    make = staticmethod(SMALL)
    make_compared = staticmethod(COMPARED)


class TestTwoPath(SearcherContract):
    make = staticmethod(functools.partial(SMALL, estimator="two_path"))
    make_compared = staticmethod(functools.partial(COMPARED, estimator="two_path"))


class TestReinforce(SearcherContract):
    make = staticmethod(functools.partial(SMALL, estimator="reinforce"))
    not_compared = "it needs more updates than this: see the toy problem that is solved below"


def make(**changes: Any) -> ProxylessNAS:
    """A search on the toy problem; `changes` are of its collaborators and options, or of `ARCHITECTURE`."""
    own = {field.name: changes.pop(field.name) for field in fields(ArchitectureOptions) if field.name in changes}
    given = collaborators(seed=changes.pop("seed", 0), cost_ratio=changes.pop("cost_ratio", 0.5))
    given["supernet"] = ToySupernet(given["space"], seed=given["seed"])
    return SMALL(**(given | {"architecture": replace(ARCHITECTURE, **own)} | changes))


def run(searcher: ProxylessNAS) -> list[Trial]:
    return [trial for _ in range(searcher.num_steps) for trial in searcher.step()]


class Quiet(ToySupernet):
    """Without noise in its gates' gradients; counts what it is asked."""

    def __init__(self, space: SearchSpace, **options: Any) -> None:
        super().__init__(space, **options)
        self.asked: list[tuple[IntArray, BoolArray]] = []

    def gates(self, path: IntArray, wanted: BoolArray) -> tuple[float, FloatArray]:
        self.asked.append((path, wanted))
        ratios = self.ratios
        lost = 1 - ratios[np.arange(len(ratios)), path]
        gradient = -2 * (self._sensitivities * lost)[:, None] * ratios
        return float(self._losses(path[None])[0]), np.where(wanted, gradient, 0.0)


NO_COST = replace(COST_LOSS, form="additive", weight=0.0)


def gradient_of(searcher: ProxylessNAS) -> FloatArray:
    """The gradient of one update, taken from the optimizer; α is put back."""
    before = searcher.architecture.state_dict()
    assert searcher.learn()
    assert searcher.architecture.alpha.grad is not None
    gradient = searcher.architecture.alpha.grad.numpy().copy()
    searcher.architecture.load_state_dict(before)
    return np.asarray(gradient)


def test_the_full_gradient_is_that_of_the_formula() -> None:
    supernet = Quiet(toy_space())
    searcher = make(supernet=supernet, cost_loss=NO_COST, init_std=0.5)
    found = gradient_of(searcher)
    path, wanted = supernet.asked[0]
    assert (wanted == searcher.candidates.is_one).all()
    _, gates = supernet.gates(path, wanted)
    p = searcher.architecture.probabilities().detach().numpy()
    expected = np.zeros_like(p)
    for choice in range(len(p)):
        for i in range(p.shape[1]):
            for j in range(p.shape[1]):
                expected[choice, i] += gates[choice, j] * p[choice, j] * ((i == j) - p[choice, i])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_full_gradient_is_that_of_the_expected_loss_where_losses_add_up_over_gates() -> None:
    """Where the loss is linear in the gates, the gradient does not depend on the path, and is that of Σ_j p_j ℓ_j."""
    losses = np.random.default_rng(0).standard_normal((8, 4))

    class Linear(ToySupernet):
        def gates(self, path: IntArray, wanted: BoolArray) -> tuple[float, FloatArray]:
            return float(losses[np.arange(8), path].sum()), np.where(wanted, losses, 0.0)

    searcher = make(supernet=Linear(toy_space()), cost_loss=NO_COST, init_std=1.0)
    alpha = searcher.architecture.alpha.detach().numpy().copy()

    def expected_loss(alpha: FloatArray) -> float:
        p = np.exp(alpha) / np.exp(alpha).sum(axis=1, keepdims=True)
        return float((p * losses).sum())

    found, step = gradient_of(searcher), 1e-6
    for index in np.ndindex(alpha.shape):
        moved = np.zeros_like(alpha)
        moved[index] = step
        slope = (expected_loss(alpha + moved) - expected_loss(alpha - moved)) / (2 * step)
        assert found[index] == pytest.approx(slope, abs=1e-8)


def test_two_paths_learn_what_all_would_if_these_were_all() -> None:
    supernet = Quiet(toy_space())
    searcher = make(supernet=supernet, estimator="two_path", cost_loss=NO_COST, init_std=0.5)
    found = gradient_of(searcher)
    path, wanted = supernet.asked[0]
    assert (wanted.sum(axis=1) == 2).all()
    assert wanted[np.arange(len(path)), path].all()
    _, gates = supernet.gates(path, wanted)
    alpha = searcher.architecture.alpha.detach().numpy()
    for choice, row in enumerate(wanted):
        pair = np.flatnonzero(row)
        p = np.exp(alpha[choice, pair]) / np.exp(alpha[choice, pair]).sum()
        own = gates[choice, pair]
        assert found[choice, pair] == pytest.approx(p * (own - p @ own), abs=1e-12)
        assert (found[choice, ~row] == 0).all()


def test_two_paths_point_on_average_where_all_do() -> None:
    full = make(supernet=Quiet(toy_space()), init_std=0.5)
    pairs = make(supernet=Quiet(toy_space()), init_std=0.5, estimator="two_path")
    pairs.architecture.load_state_dict(full.architecture.state_dict())
    all_of_them = np.mean([gradient_of(full) for _ in range(200)], axis=0).ravel()
    sampled = np.mean([gradient_of(pairs) for _ in range(800)], axis=0).ravel()
    cosine = all_of_them @ sampled / np.linalg.norm(all_of_them) / np.linalg.norm(sampled)
    assert cosine > 0.9


def test_the_probabilities_of_candidates_outside_the_pair_stay_what_they_are() -> None:
    supernet = Quiet(toy_space())
    searcher = make(supernet=supernet, estimator="two_path", init_std=1.0, beta1=0.5)
    for _ in range(3):
        before = searcher.architecture.probabilities().detach().numpy().copy()
        assert searcher.learn()
        after = searcher.architecture.probabilities().detach().numpy()
        _, pair = supernet.asked[-1]
        np.testing.assert_allclose(after[~pair], before[~pair], atol=1e-12)
        assert np.abs(after[pair] - before[pair]).min() > 1e-6


def test_pairs_are_drawn_by_probability_without_replacement() -> None:
    rng = np.random.default_rng(0)
    architecture = make(init_std=1.0).architecture
    p = architecture.probabilities().detach().numpy()[0]
    drawn = np.zeros((4, 4))
    for _ in range(4000):
        first, second = np.flatnonzero(architecture.sample_pairs(rng)[0])
        drawn[first, second] += 1 / 4000
    for i in range(4):
        for j in range(i + 1, 4):
            assert drawn[i, j] == pytest.approx(p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]), abs=0.03)


def test_the_expected_cost_is_the_mean_over_drawn_networks() -> None:
    searcher = make(init_std=1.0)
    told = float(searcher.cost_model.expected(searcher.candidates, searcher.architecture.probabilities().detach()))
    paths = searcher.architecture.sample(20_000, np.random.default_rng(0))
    costs = searcher.cost_model.costs(searcher.candidates.choices(paths))
    assert told == pytest.approx(costs.mean(), abs=4 * costs.std() / 20_000**0.5)


def with_blocks() -> SearchSpace:
    """The toy space with two blocks that may be skipped."""
    blocks = tuple(Block(name, (Operation("keep"), Operation(ZERO))) for name in ("a", "b"))
    return replace(toy_space(), blocks=blocks)


class BlockCost:
    """What a network of kept and skipped blocks costs: 100 and 60 for the blocks, 40 for the rest."""

    resource = "macs"

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def cost(self, policy: Policy) -> float:
        return float(self.costs(self.space.choices(policy)[None])[0])

    def costs(self, counts: IntArray) -> FloatArray:
        costs: FloatArray = 40.0 + (counts[:, -2:] == 0) @ np.array([100.0, 60.0])
        return costs

    def expected(self, candidates: Candidates, probabilities: torch.Tensor) -> torch.Tensor:
        return 40.0 + probabilities[-2:, 0] @ torch.tensor([100.0, 60.0]).double()


class Silent(ToySupernet):
    """Gates whose gradients are all zero, as those of a skipped block's zero operation are."""

    def gates(self, path: IntArray, wanted: BoolArray) -> tuple[float, FloatArray]:
        return 1.0, np.zeros(wanted.shape)


@pytest.mark.parametrize("estimator", ["full", "two_path"])
@pytest.mark.parametrize("form", ["additive", "absolute", "multiplicative_log"])
def test_cost_pulls_on_a_block_whatever_operation_is_active(estimator: str, form: str) -> None:
    space = with_blocks()
    budget = Budget("macs", limit=50.0, dense=200.0)
    loss = replace(COST_LOSS, form=form)
    given = {"space": space, "supernet": Silent(space), "cost_model": BlockCost(space), "budget": budget}
    searcher = make(**given, estimator=estimator, cost_loss=loss, evaluator=ToyEvaluator(space))
    for _ in range(10):  # with keep and with zero active
        gradient = gradient_of(searcher)
        assert (gradient[-2:, 1] < 0).all(), "Adam goes down the gradient, towards the cheaper operation"
        assert (gradient[-2:, 0] > 0).all()


def test_reinforce_has_on_average_the_gradient_of_the_expected_reward() -> None:
    class Tiny(ToySupernet):
        def accuracies(self, paths: IntArray) -> FloatArray:
            return 0.95 - self._losses(paths)

    space = replace(toy_space(), groups=toy_space().groups[:2], layers=toy_space().layers[:2])
    supernet = Tiny(space)
    given = {"space": space, "supernet": supernet, "cost_model": ToyCost(space), "evaluator": ToyEvaluator(space)}
    budget = budget_from_ratio(cost_ratio=0.5, cost_model=given["cost_model"], space=space)
    importance = toy_importance(space)
    searcher = make(
        **given, budget=budget, importance=importance, estimator="reinforce", reinforce_samples=20_000, init_std=0.5
    )
    found = gradient_of(searcher)
    p = searcher.architecture.probabilities().detach().numpy()
    expected = np.zeros_like(p)
    for path in itertools.product(range(4), repeat=2):
        index = np.array(path)
        accuracy = supernet.accuracies(index[None])
        cost = searcher.cost_model.costs(searcher.candidates.choices(index[None]))
        reward = float(searcher.cost_loss.rewards(accuracy, cost, budget.limit)[0])
        chance = p[0, path[0]] * p[1, path[1]]
        for choice in range(2):
            one_hot = np.arange(4) == path[choice]
            expected[choice] -= chance * reward * (one_hot - p[choice])
    np.testing.assert_allclose(found, expected, atol=0.003)
    assert np.abs(expected).max() > 0.03


def test_an_epoch_that_diverges_is_undone_and_training_goes_on_slower(caplog: pytest.LogCaptureFixture) -> None:
    supernet = ToySupernet(toy_space(), diverges_at=4)
    searcher = make(supernet=supernet)
    for _ in range(4):
        searcher.step()
    before = copy.deepcopy(searcher.state_dict())
    [failed] = searcher.step()
    assert failed.objective is None
    assert "not finite" in failed.failure
    assert "undone" in caplog.text
    after = searcher.state_dict()
    assert torch.equal(after["architecture"]["alpha"], before["architecture"]["alpha"])
    assert after["supernet"]["weight"] == before["supernet"]["weight"]
    assert after["supernet"]["lr"] == before["supernet"]["lr"] / 2
    rest = [trial for _ in range(searcher.num_steps - 5) for trial in searcher.step()]
    assert all(trial.objective is not None for trial in rest)


def test_weights_that_the_last_step_of_an_epoch_broke_are_not_gone_on_with() -> None:
    class Breaking(ToySupernet):
        def train(self, paths: IntArray) -> FloatArray:
            losses = super().train(paths)
            if self.num_steps == 4 * self.steps_per_epoch and self.lr == 0.1:
                self.weight = float("inf")  # after the last loss of the fourth epoch
            return losses

    searcher = make(supernet=Breaking(toy_space()))
    trials = run(searcher)
    assert [trial.objective is None for trial in trials[:8]] == [False, False, False, True, False, False, False, False]


def test_an_objective_that_is_not_finite_never_reaches_the_probabilities() -> None:
    class Free(ToyCost):
        def expected(self, candidates: Candidates, probabilities: torch.Tensor) -> torch.Tensor:
            return super().expected(candidates, probabilities) * torch.nan

    for estimator in ("full", "two_path"):
        searcher = make(cost_model=Free(toy_space()), estimator=estimator)
        assert not searcher.learn()
        assert torch.isfinite(searcher.architecture.alpha).all()


def test_gradients_that_are_not_finite_never_reach_the_probabilities() -> None:
    class Broken(ToySupernet):
        def gates(self, path: IntArray, wanted: BoolArray) -> tuple[float, FloatArray]:
            return float("nan"), np.full(wanted.shape, np.nan)

    searcher = make(supernet=Broken(toy_space()))
    trials = run(searcher)
    assert torch.isfinite(searcher.architecture.alpha).all()
    assert [trial.objective is None for trial in trials[:8]] == [False] * 2 + [True] * 6


def test_probabilities_stay_equal_through_the_warm_up() -> None:
    searcher = make()
    before = searcher.architecture.alpha.detach().clone()
    for _ in range(2):
        searcher.step()
    assert torch.equal(searcher.architecture.alpha, before)
    searcher.step()
    assert not torch.equal(searcher.architecture.alpha, before)


@pytest.mark.parametrize("estimator", ["full", "two_path", "reinforce"])
def test_a_toy_problem_with_a_known_best_network_is_solved(estimator: str) -> None:
    longer = ToySupernet(toy_space(), epochs=60, warmup_epochs=1)
    lr = {"full": 0.05, "two_path": 0.1, "reinforce": 0.05}[estimator]
    samples = 32 if estimator == "reinforce" else 4
    searcher = make(supernet=longer, estimator=estimator, lr=lr, reinforce_samples=samples, num_samples=0)
    assert searcher.budget is not None
    trials = run(searcher)
    every = np.stack(np.meshgrid(*[range(4)] * 8, indexing="ij"), axis=-1).reshape(-1, 8)
    costs = searcher.cost_model.costs(searcher.candidates.choices(every))
    losses = longer._losses(every)
    best = 0.95 - losses[costs <= searcher.budget.limit].min()
    by_chance = 0.95 - np.median(losses[(costs <= searcher.budget.limit) & (costs > 0.9 * searcher.budget.limit)])
    found = trials[-1].measurement.accuracy
    assert (found - by_chance) / (best - by_chance) > 0.8


def test_the_trial_of_an_epoch_says_what_the_search_believed() -> None:
    searcher = make()
    [trial] = searcher.step()
    state = PathState.from_genome(trial.genome)
    assert state is not None
    assert state.epoch == 1
    assert tuple(state.probabilities) == searcher.candidates.names
    for name, labels in zip(searcher.candidates.names, searcher.candidates.labels, strict=True):
        assert tuple(state.probabilities[name]) == labels
        assert sum(state.probabilities[name].values()) == pytest.approx(1)
    assert state.entropy == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("cost_ratio", [0.15, 0.5, 0.8])
def test_a_tilted_start_draws_networks_that_cost_the_budget_on_average(cost_ratio: float) -> None:
    searcher = make(start="budget", cost_ratio=cost_ratio)
    told = float(searcher.cost_model.expected(searcher.candidates, searcher.architecture.probabilities().detach()))
    assert told / searcher.dense_cost == pytest.approx(cost_ratio, abs=1e-3)


def test_samples_end_the_search_without_a_genome() -> None:
    searcher = make(num_samples=6, samples_per_step=4)
    trials = run(searcher)
    assert [bool(trial.genome) for trial in trials] == [True] * 8 + [False] * 6


def test_the_budget_is_filled_by_what_is_nearly_as_probable() -> None:
    # Equal probabilities cost less than this on average.
    filled, not_filled = (make(fill_budget=fill, cost_ratio=0.8).step()[0] for fill in (True, False))
    assert not_filled.cost_ratio < 0.5
    assert 0.75 < filled.cost_ratio <= 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "straight_through"}, "must be one of full, two_path, reinforce"),
        ({"update_every": 0}, r"`update_every >= 1` must hold"),
        ({"reinforce_samples": 1}, r"`reinforce_samples >= 2` must hold"),
        ({"cost_ratio": None}, "form=absolute holds a budget"),
        ({"lr": 0.0}, "`lr > 0`"),
        ({"update_every": 21}, "must be at most the 20 steps of an epoch"),
    ],
)
def test_what_does_not_work_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)


def test_logarithms_of_costs_below_one_are_refused() -> None:
    class Milliseconds(ToyCost):
        resource = "latency_ms"

        def costs(self, counts: IntArray) -> FloatArray:
            return super().costs(counts) / 6e6

    cost_model = Milliseconds(toy_space(), "latency_ms")
    budget = budget_from_ratio(cost_ratio=0.5, cost_model=cost_model, space=toy_space())
    with pytest.raises(ValueError, match="the smallest network's latency_ms is 0"):
        make(cost_model=cost_model, budget=budget, cost_loss=replace(COST_LOSS, form="multiplicative_log"))


def test_a_budget_that_only_skipped_blocks_can_meet_is_met_by_search_samples_and_baselines() -> None:
    space = with_blocks()
    cost_model, budget = BlockCost(space), Budget("macs", limit=50.0, dense=200.0)
    given = {"space": space, "cost_model": cost_model, "budget": budget, "evaluator": ToyEvaluator(space)}
    importance = toy_importance(toy_space())
    trials = run(make(**given, supernet=Silent(space), start="budget"))
    trials += Uniform(**given, importance=importance).step()
    trials += RandomSearch(**given, importance=importance, seed=0, num_steps=1).step()
    assert len(trials) == 8 + 6 + 2
    assert all(trial.cost_ratio == 0.2 for trial in trials)


def test_samples_that_cost_less_than_the_budget_stay_what_was_drawn() -> None:
    ratios = [trial.cost_ratio for trial in run(make(num_samples=40))[8:]]
    assert min(ratios) < 0.3
    assert max(ratios) <= 0.5


def test_a_cost_without_an_expectation_is_refused() -> None:
    class Plain:
        resource = "energy_mj"

        def __init__(self) -> None:
            self.costs = ToyCost(toy_space()).costs
            self.cost = ToyCost(toy_space()).cost

    with pytest.raises(ValueError, match="energy_mj has none; use budget=macs, params, latency or energy"):
        make(cost_model=Plain())


@pytest.mark.parametrize("options", [{"form": "huber"}, {"weight": -1.0}])
def test_a_cost_loss_of_unknown_form_or_negative_weight_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cost_loss"):
        replace(COST_LOSS, **options)
