"""Global magnitude pruning: the least important filters of the whole network go first. LeGR with nothing learnt.

Whatever criterion `importance` names; magnitude (Han et al. 2015, arXiv:1506.02626) is the oldest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compsearch.budget import Budget
from compsearch.importance import LayerImportance
from compsearch.protocols import CostModel, Evaluator
from compsearch.scoring import score
from compsearch.space import Policy, SearchSpace
from compsearch.trial import Trial
from searchers.ranking import Ranking


class GlobalMagnitude:
    """One step, one trial: what the ranking by plain importance keeps within the budget."""

    num_steps = 1

    def __init__(
        self,
        *,
        space: SearchSpace,
        evaluator: Evaluator,
        cost_model: CostModel,
        budget: Budget | None,
        importance: LayerImportance,
    ) -> None:
        self.space = space
        self.evaluator = evaluator
        self.cost_model = cost_model
        self.ranking = Ranking(space, importance.scores())
        self.policy = self.ranking.policy(budget, cost_model=cost_model)

    def step(self) -> list[Trial]:
        """Scores the one policy."""
        return self._score([self.policy])

    def family(self, trial: Trial, budgets: Sequence[Budget]) -> list[Trial]:
        """What the same ranking keeps within each budget, scored."""
        return self._score([self.ranking.policy(budget, cost_model=self.cost_model) for budget in budgets])

    def state_dict(self) -> dict[str, Any]:
        """Empty: nothing changes from step to step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""

    def _score(self, policies: Sequence[Policy]) -> list[Trial]:
        return score(policies, space=self.space, evaluator=self.evaluator, cost_model=self.cost_model)
