"""Judges candidates by cutting a copy of the model and evaluating it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import paddle

from slim_det.compress.prune.cutting import cut_copies
from slim_det.compress.prune.pruner import Pruner
from slim_det.evaluate.evaluation import evaluate_model
from slim_det.planning.budget.candidates import Candidate
from slim_det.planning.budget.costs import TracedModel


@dataclass(frozen=True)
class Judged:
    """A candidate that was cut and evaluated.

    Attributes:
        candidate: The plan.
        ratios: Group -> pruning ratio; groups that are not pruned are absent.
        measured_ap: Metric of the pruned model, 0 to 1.
    """

    candidate: Candidate
    ratios: dict[str, float]
    measured_ap: float


def judge(
    cfg: Any,
    traced: TracedModel,
    pruner: Pruner,
    plans: Sequence[tuple[Candidate, dict[str, float]]],
    copy: Callable[[], paddle.nn.Layer],
) -> Iterator[Judged]:
    """Prune, repair if the pruner does, and evaluate on EvalDataset.

    Args:
        cfg: ppdet's configuration.
        traced: The unpruned model.
        pruner: Criterion, alignment and repair; the layers that it names do not count.
        plans: Candidates with their ratios.
        copy: Makes another unpruned model with equal weights.

    Yields:
        Each candidate as soon as it is evaluated.

    Raises:
        SlimDetError: As `Pruner.cut`.
    """
    cuts = [ratios for _, ratios in plans]
    models = cut_copies(pruner, traced.model, traced.trace, traced.groups, cuts, copy, cfg)
    for (candidate, ratios), model in zip(plans, models):
        measured = evaluate_model(cfg, model).ap
        yield Judged(candidate, ratios, measured)


def best_of(judged: Iterable[Judged]) -> Judged:
    """The candidate with the best measured metric; the first of equal ones."""
    return max(judged, key=lambda one: one.measured_ap)
