"""Shown lines against printed ones: what has to be equal and what may differ."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.support import ROOT

_SPEC = importlib.util.spec_from_file_location("check_docs", ROOT / "docs" / "check_docs.py")
assert _SPEC and _SPEC.loader
check_docs = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(check_docs)

DOCUMENT = """Text.

```console
$ echo one
one
$ echo 3 \\
    4
...
3 4
```

```
$ not run
```
"""


def test_no_commands() -> None:
    assert check_docs.blocks("plain text\n\n```\n$ ls\n```\n") == []


def test_commands_with_what_they_show() -> None:
    assert check_docs.blocks(DOCUMENT) == [
        ("echo one", ["one"]),
        ("echo 3 \\\n    4", ["...", "3 4"]),
    ]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("", "", True),
        ("saved a/b.json", "saved a/b.json", True),
        ("saved a/b.json", "saved a/c.json", False),
        ("MACs: 107139072", "MACs: 107139072", True),
        ("MACs: 107139072", "MACs: 107139073", False),
        ("coco_ap 0.4306 on 80 images", "coco_ap 0.4500 on 80 images", True),
        ("coco_ap 0.4306 on 80 images", "coco_ap 0.5306 on 80 images", False),
        ("10.0 ms per image", "35.2 ms per image", True),
        ("speed 1.23x", "speed 2.00x", True),
        ("max abs 1.91e-06", "max abs 8.00e-07", True),
        ("  base   0.50", "base 0.51", True),
        ("18 groups", "12 groups", False),
    ],
)
def test_agreement(shown: str, printed: str, same: bool) -> None:
    assert check_docs.agree(shown, printed) is same


def test_shown_lines_have_to_come_in_order() -> None:
    printed = ["noise", "a 1", "noise", "b 2"]
    assert check_docs.compare(["a 1", "...", "b 2"], printed) == [("a 1", "a 1"), ("b 2", "b 2")]
    assert check_docs.compare(["b 2", "a 1"], printed) == [("b 2", "b 2"), ("a 1", "")]


def test_figures_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.md"
    path.write_text("```console\n$ echo AP 0.52\nAP 0.50\n```\n")
    monkeypatch.setattr("sys.argv", ["check_docs.py", str(path), "--write"])
    assert check_docs.main() == 0
    assert "\nAP 0.52\n```" in path.read_text()


def test_a_line_that_is_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.md"
    path.write_text("```console\n$ echo AP 0.90\nAP 0.50\n```\n")
    monkeypatch.setattr("sys.argv", ["check_docs.py", str(path)])
    assert check_docs.main() == 1
    assert "not printed: AP 0.50" in capsys.readouterr().out


def test_a_command_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.md"
    path.write_text("```console\n$ exit 3\n```\n")
    monkeypatch.setattr("sys.argv", ["check_docs.py", str(path)])
    with pytest.raises(SystemExit, match="exit code 3: exit 3"):
        check_docs.main()
