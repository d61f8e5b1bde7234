"""Joint names written out, and the one order of a chain."""

from __future__ import annotations

from typing import Any

import pytest

from slim_det.compress.chain import check_override, expand_strategies, write_out_sections
from slim_det.core.errors import ConfigError


def one_line(call: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "chain"),
    [
        ([], ()),
        (["QAT"], ("QAT",)),
        (["DistillPrune"], ("Pruner", "Distill")),
        (["PrunerQAT"], ("Pruner", "QAT")),
        (["DistillPrune", "QAT"], ("Pruner", "Distill", "QAT")),
        (["Pruner", "Distill", "QAT"], ("Pruner", "Distill", "QAT")),
        (["Pruner", "PTQ"], ("Pruner", "PTQ")),
        (["Slim", "Distill"], ("Slim", "Distill")),
        (["Pruner", "Slim", "Distill", "QAT"], ("Pruner", "Slim", "Distill", "QAT")),
    ],
)
def test_chains_that_work(names: list[str], chain: tuple[str, ...]) -> None:
    assert expand_strategies(names, "s.yml") == chain


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["QAT", "QAT"], "'QAT' is named twice"),
        (["PrunerQAT", "QAT"], "'QAT' is named twice"),
        (["DistillPrune", "PrunerQAT"], "'Pruner' is named twice"),
        (["QAT", "PTQ"], "'QAT' and 'PTQ' exclude each other"),
        (["Distill", "PTQ"], "'PTQ' does not train"),
        (["Slim", "PTQ"], "'PTQ' does not train"),
        (["Slim", "Pruner"], "'Pruner' comes after 'Slim'; expected slim: [Pruner, Slim]"),
        (["Distill", "Slim"], "'Slim' comes after 'Distill'; expected slim: [Slim, Distill]"),
        (["Distill", "Pruner"], "'Pruner' comes after 'Distill'; expected slim: [Pruner, Distill]"),
        (["QAT", "Distill"], "'Distill' comes after 'QAT'; expected slim: [Distill, QAT]"),
        (["QAT", "Pruner", "Distill"], "expected slim: [Pruner, Distill, QAT]"),
        (["PTQ", "Pruner"], "'Pruner' comes after 'PTQ'; expected slim: [Pruner, PTQ]"),
    ],
)
def test_chains_that_do_not(names: list[str], said: str) -> None:
    line = one_line(expand_strategies, names, "s.yml")
    assert line.startswith("s.yml: slim: ") and said in line


PRUNER_QAT = {
    "criterion": "fpgm",
    "pruned_params": ["a"],
    "pruned_ratios": [0.1],
    "print_prune_params": False,
    "quant_config": {"weight_bits": 8},
    "print_qat_model": True,
}


def test_joint_section_is_split() -> None:
    tree: dict[str, Any] = {"PrunerQAT": PRUNER_QAT, "epoch": 3}
    write_out_sections(tree, "s.yml")
    pruner = {"criterion": "fpgm", "pruned_params": ["a"], "pruned_ratios": [0.1]}
    assert tree == {
        "epoch": 3,
        "Pruner": {**pruner, "print_params": False},
        "QAT": {"quant_config": {"weight_bits": 8}, "print_model": True},
    }


@pytest.mark.parametrize("section", [None, {}])
def test_empty_joint_section(section: Any) -> None:
    tree = {"PrunerQAT": section}
    write_out_sections(tree, "s.yml")
    assert tree == {}


def test_keys_without_effect_are_dropped() -> None:
    """Others stay, right or wrong; the component's own check names them."""
    tree: dict[str, Any] = {"PTQ": {"fuse": True, "fuse_list": [["a"]], "output_dir": "x", "y": 1}}
    write_out_sections(tree, "s.yml")
    assert tree == {"PTQ": {"y": 1}}


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"PrunerQAT": 3}, "PrunerQAT: expected a mapping of keys, found 3"),
        ({"PrunerQAT": {"criterium": "fpgm"}}, "'criterium'; did you mean 'criterion'?"),
        ({"PrunerQAT": {}, "QAT": {}}, "PrunerQAT and QAT are both given"),
        ({"PrunerQAT": {}, "Pruner": {}}, "PrunerQAT and Pruner are both given"),
        ({"pruner": "PrunerQAT"}, "pruner: 'PrunerQAT' is not supported; did you mean 'Pruner'?"),
    ],
)
def test_sections_that_cannot_be_split(tree: dict[str, Any], said: str) -> None:
    line = one_line(write_out_sections, tree, "s.yml")
    assert line.startswith("s.yml: ") and said in line


@pytest.mark.parametrize("key", ["QAT.quant_config", "Pruner.align", "epoch", "PTQ.images"])
def test_other_overrides_pass(key: str) -> None:
    check_override(key)


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("PrunerQAT.print_qat_model", "-o QAT.print_model=VALUE"),
        ("PrunerQAT.criterion", "-o Pruner.criterion=VALUE"),
        ("PrunerQAT", "-o Pruner.KEY or QAT.KEY=VALUE"),
        ("DistillPrune.loss", "-o Pruner.KEY or Distill.KEY=VALUE"),
    ],
)
def test_override_of_a_joint_section(key: str, place: str) -> None:
    assert one_line(check_override, key).endswith(f"expected {place}")
