"""`slim-det verify`: proof that a cut model equals the whole one with zeroed channels."""

from __future__ import annotations

import argparse

from slim_det.cli.common import (
    add_config_arguments,
    add_json_argument,
    positive,
    read_configs,
    save_json,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_config_arguments(parser)
    parser.add_argument("--image_size", type=positive, help="side of a square, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the image")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Compare both models on every output of the head; exit code 1 where they differ."""
    from slim_det import session
    from slim_det.config import image_size_hw
    from slim_det.errors import PlanError
    from slim_det.prune.masked import compare_with_masked
    from slim_det.prune.plan import plan_of
    from slim_det.prune.pruner import describe_cost

    cfg, slim = read_configs(args)
    size_hw = image_size_hw(cfg, args.image_size)
    cut = session.model_with_weights(cfg, cfg.get("weights"), slim)
    plan = plan_of(cut)
    if plan is None:
        raise PlanError(
            f"'{cfg.weights}' are of a whole model: there is nothing to verify; add --slim_config, "
            "or name the weights of a pruned model"
        )
    stages = compare_with_masked(cut, session.build_model(cfg), plan, size_hw, args.seed)
    for stage in stages:
        print(stage)
    passed = bool(stages) and all(stage.passed for stage in stages)
    print(f"{'pass' if passed else 'FAIL'}  {describe_cost(plan)}")
    save_json(args, {"stages": [stage.as_dict() for stage in stages], "passed": passed})
    return 0 if passed else 1
