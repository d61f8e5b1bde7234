"""YAML with bases and ppdet's tags cannot run code."""

from __future__ import annotations

from pathlib import Path

import pytest

from slim_det.core.errors import ConfigError
from slim_det.core.safe_yaml import merge, read_tree


def write(folder: Path, **files: str) -> Path:
    """Write `name.yml` files; returns the first."""
    for name, text in files.items():
        (folder / f"{name}.yml").write_text(text)
    return folder / f"{next(iter(files))}.yml"


def test_later_base_wins_and_the_file_wins_over_both(tmp_path: Path) -> None:
    """Mappings are merged to any depth; lists are replaced."""
    path = write(
        tmp_path,
        main="_BASE_: [one.yml, sub/two.yml]\nA: {z: 9}\nl: [3]\n",
        one="A: {x: 1, y: {p: 1, q: 1}, z: 1}\nl: [1, 2]\n",
    )
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", two="_BASE_: [../three.yml]\nA: {x: 2, y: {q: 2}}\n")
    write(tmp_path, three="A: {x: 3, w: 3}\n")
    expected = {"A": {"x": 2, "y": {"p": 1, "q": 2}, "z": 9, "w": 3}, "l": [3]}
    assert read_tree(path) == expected


def test_base_by_absolute_path_and_from_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, here="x: 1\n", home="y: 2\n")
    path = write(tmp_path, main=f"_BASE_: [{tmp_path}/here.yml, ~/home.yml]\n")
    assert read_tree(path) == {"x": 1, "y": 2}
    assert read_tree("~/main.yml") == {"x": 1, "y": 2}


def test_same_base_twice_is_no_circle(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        main="_BASE_: [left.yml, right.yml]\n",
        left="_BASE_: [common.yml]\nl: 1\n",
        right="_BASE_: [common.yml]\nr: 1\n",
        common="c: 1\n",
    )
    assert read_tree(path) == {"c": 1, "l": 1, "r": 1}


@pytest.mark.parametrize(
    "files",
    [
        {"main": "_BASE_: [main.yml]\n"},
        {"main": "_BASE_: [other.yml]\n", "other": "_BASE_: [./x/../main.yml]\n"},
    ],
)
def test_circle(tmp_path: Path, files: dict[str, str]) -> None:
    path = write(tmp_path, **files)
    with pytest.raises(ConfigError, match="includes itself through _BASE_"):
        read_tree(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a mapping of keys, found NoneType"),
        ("- 1\n", "expected a mapping of keys, found list"),
        ("a: [1\n", "is not valid YAML"),
        ("a: 1\n  b: 2\n", "line 2"),
        ("{}: 1\n", "is not valid YAML"),
        ("a: !!python/name:os.system ''\n", "python/name:os.system"),
        ("a: !!python/object/apply:os.getcwd []\n", "python/object/apply:os.getcwd"),
        ("a: !NoSuchThing {}\n", "!NoSuchThing"),
    ],
)
def test_refused_in_one_line(tmp_path: Path, ppdet_registered: None, text: str, said: str) -> None:
    path = write(tmp_path, main=text)
    with pytest.raises(ConfigError) as caught:
        read_tree(path)
    assert str(path) in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("check_only", [False, True])
def test_tag_that_calls_any_function(
    tmp_path: Path, ppdet_registered: None, check_only: bool
) -> None:
    """ppdet registers `!Callable`; it is refused with and without ppdet imported."""
    path = write(tmp_path, main="a: !Callable {full_type: os.getcwd}\n")
    with pytest.raises(ConfigError, match="tag '!Callable'"):
        read_tree(path, check_only=check_only)


def test_tags_of_ppdet_build_its_objects(tmp_path: Path, ppdet_registered: None) -> None:
    from ppdet.optimizer.optimizer import PiecewiseDecay

    path = write(tmp_path, main="s: !PiecewiseDecay {gamma: [0.5, 0.25], milestones: [1, 2]}\n")
    decay = read_tree(path)["s"]
    assert type(decay) is PiecewiseDecay and decay.gamma == [0.5, 0.25]
    assert not isinstance(read_tree(path, check_only=True)["s"], PiecewiseDecay)


def test_tagged_data_set_can_be_changed_in_part(tmp_path: Path, ppdet_registered: None) -> None:
    """Like a data set with a name; an empty one keeps its defaults."""
    path = write(
        tmp_path,
        main="_BASE_: [base.yml]\nEvalDataset: {dataset_dir: here}\n",
        base=(
            "EvalDataset: !WIDERFaceDataSet\n  dataset_dir: there\n  data_fields: [image]\n"
            "TestDataset: !ImageFolder\n"
        ),
    )
    assert read_tree(path) == {
        "EvalDataset": {
            "name": "WIDERFaceDataSet",
            "dataset_dir": "here",
            "data_fields": ["image"],
        },
        "TestDataset": {"name": "ImageFolder"},
    }


def test_missing_files_are_named_with_their_base(tmp_path: Path) -> None:
    path = write(tmp_path, main="_BASE_: [bass.yml]\n", base="x: 1\n")
    with pytest.raises(ConfigError) as caught:
        read_tree(path)
    missing = f"{tmp_path}/bass.yml (a base of {path}) does not exist"
    assert str(caught.value) == f"{missing}; did you mean 'base.yml'?"
    with pytest.raises(ConfigError, match="gone/x.yml does not exist$"):
        read_tree(tmp_path / "gone" / "x.yml")
    with pytest.raises(ConfigError, match=r"expected a \.yml or \.yaml file"):
        read_tree(tmp_path / "main.json")


def test_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "main.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tree(tmp_path / "main.yml")
    (tmp_path / "folder.yml").mkdir()
    with pytest.raises(ConfigError, match="folder.yml cannot be read"):
        read_tree(tmp_path / "folder.yml")


def test_merge_leaves_the_other_side_alone() -> None:
    into, other = {"a": {"x": 1}, "b": 1}, {"a": {"y": 2}, "b": {"z": 3}}
    assert merge(into, other) is into
    assert into == {"a": {"x": 1, "y": 2}, "b": {"z": 3}}
    assert other == {"a": {"y": 2}, "b": {"z": 3}}
