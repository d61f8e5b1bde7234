"""Reads the tags of a VOC annotation, each of which has one meaning or is a fault."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slim_det.evaluate.data.findings import Findings, Kind

MISSING_XML = Kind("missing annotation", "missing annotations", "expected an XML file")
NOT_XML = Kind("annotation that is not XML", "annotations that are not XML", "expected VOC's XML")
NOT_VOC = Kind(
    "tag that is not where VOC has it",
    "tags that are not where VOC has them",
    "expected <annotation> with every <object> directly in it, without a namespace",
)
AMBIGUOUS = Kind("tag that is not clear", "tags that are not clear", "expected it once, with text")

_READ = ("size", "id")
_READ_OF_OBJECT = ("name", "difficult", "bndbox")
_INSIDE = {"size": ("width", "height"), "bndbox": ("xmin", "ymin", "xmax", "ymax")}
"""Tags that hold others -> those that are read."""

_ENCODING = re.compile(rb"""^<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")


def read_tags(xml: Path, findings: Findings) -> dict[str, Any] | None:
    """Read the tags of an annotation that ppdet reads.

    Args:
        xml: The file.
        findings: Receives its faults.

    Returns:
        Tag -> its text, or a mapping for one that holds others; a list under ``object``. None if
        the file is not an annotation.
    """
    try:
        tree = ElementTree.fromstring(_decoded(xml.read_bytes()))
    except FileNotFoundError:
        findings.fault(MISSING_XML, f"'{xml}'")
        return None
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        findings.fault(NOT_XML, f"'{xml}' {error}")
        return None
    objects = tree.findall("object")
    faults = [(NOT_VOC, place) for place in _misplaced(tree, objects)]
    faults += [(AMBIGUOUS, place) for place in _ambiguous(tree, _READ, "")]
    for number, node in enumerate(objects, start=1):
        found = _ambiguous(node, _READ_OF_OBJECT, f"object {number} ")
        faults += [(AMBIGUOUS, place) for place in found]
    for kind, place in faults:
        findings.fault(kind, f"'{xml}' {place}")
    if faults:
        return None
    return {
        **_content(tree, _READ),
        "object": [_content(node, _READ_OF_OBJECT) for node in objects],
    }


def _misplaced(tree: ElementTree.Element, objects: Sequence[ElementTree.Element]) -> Iterator[str]:
    """Objects that nobody would read, and a file of another kind, which has none."""
    direct = set(objects)
    for node in tree.iter():
        if str(node.tag).split("}")[-1].lower() == "object" and node not in direct:
            yield f"<{node.tag}>"
    if not objects and tree.tag != "annotation":
        yield f"<{tree.tag}>"


def _ambiguous(node: ElementTree.Element, tags: Sequence[str], place: str) -> Iterator[str]:
    """Tags that occur again where one is read, or hold others where text is read."""
    for tag in tags:
        found = node.findall(tag)
        if len(found) > 1 or (tag not in _INSIDE and any(map(len, found))):
            yield place + tag
        for inner in found if tag in _INSIDE else ():
            yield from _ambiguous(inner, _INSIDE[tag], f"{place}{tag}.")


def _content(node: ElementTree.Element, tags: Sequence[str]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for tag in tags:
        inner = node.find(tag)
        if inner is not None:
            content[tag] = (
                _content(inner, _INSIDE[tag]) if tag in _INSIDE else (inner.text or "").strip()
            )
    return content


def _decoded(content: bytes) -> bytes | str:
    """Text of an XML file whose declared encoding expat may not know, such as GB2312."""
    declared = _ENCODING.match(content)
    return content.decode(declared[1].decode()) if declared else content
