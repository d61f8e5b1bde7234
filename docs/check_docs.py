"""Runs the commands of a document and compares what they print with what is shown.

    python docs/check_docs.py README.md            # compare; exit code 1 where something differs
    python docs/check_docs.py README.md --write    # put today's figures into the document

A code block marked ``console`` contains commands (lines that begin with ``$ ``) and what they
print. Every shown line must be printed, in this order; ``...`` means that lines are left out.
Integers of four digits and more (MACs, parameters) must be equal, other numbers may differ by a
tenth, and times, ratios of times and numbers like 1.2e-06 are not compared.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

RELATIVE = 0.1
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?"
_TIME = re.compile(rf"{_NUMBER}(?= ?(?:ms|s|x|minutes)\b)|{_NUMBER}e[-+]\d+")
_ANY_NUMBER = re.compile(_NUMBER)


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a document, in order, each with the lines shown after it."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command = re.match(r"(?:.*\\\n)*.*", part).group(0)  # type: ignore[union-attr]
            shown = [line.rstrip() for line in part[len(command) :].splitlines() if line.strip()]
            found.append((command, shown))
    return found


def agree(shown: str, printed: str) -> bool:
    """Whether a printed line matches a shown one, apart from what may differ."""
    sides = [_TIME.sub("T", " ".join(line.split())) for line in (shown, printed)]
    if _ANY_NUMBER.sub("N", sides[0]) != _ANY_NUMBER.sub("N", sides[1]):
        return False
    pairs = zip(*(_ANY_NUMBER.findall(side) for side in sides))
    return all(_close(left, right) for left, right in pairs)


def _close(left: str, right: str) -> bool:
    if max(len(left.lstrip("+-")), len(right.lstrip("+-"))) >= 4 and "." not in left + right:
        return left == right
    a, b = float(left), float(right)
    return abs(a - b) <= RELATIVE * max(abs(a), abs(b))


def compare(shown: list[str], printed: list[str]) -> list[tuple[str, str]]:
    """Each shown line with the printed line that matches it; '' if there is none."""
    pairs, place = [], 0
    for line in shown:
        if line == "...":
            continue
        found = next((i for i in range(place, len(printed)) if agree(line, printed[i])), None)
        pairs.append((line, "" if found is None else printed[found].rstrip()))
        place = place if found is None else found + 1
    return pairs


def run(command: str) -> list[str]:
    """Run a command that must succeed and return what it prints, including errors."""
    done = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {command}\n{done.stdout[-2000:]}")
    return done.stdout.splitlines()


def main() -> int:
    """Check one document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("document", type=Path)
    parser.add_argument("--write", action="store_true", help="write today's figures")
    arguments = parser.parse_args()
    text = arguments.document.read_text(encoding="utf-8")
    differing = 0
    for command, shown in blocks(text):
        print(f"$ {command}", flush=True)
        for line, printed in compare(shown, run(command)):
            if not printed:
                differing += 1
                print(f"  not printed: {line}")
            elif arguments.write and " ".join(line.split()) != " ".join(printed.split()):
                text = text.replace(line, printed, 1)
    if arguments.write:
        arguments.document.write_text(text, encoding="utf-8")
    print(f"{differing} lines differ" if differing else "every shown line is printed")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
