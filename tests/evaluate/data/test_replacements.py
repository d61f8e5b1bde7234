"""What replaces ppdet's reading of data sets."""

from __future__ import annotations

from typing import Any

import pytest

from slim_det.core.errors import DataError


def test_a_data_set_that_cannot_be_downloaded_is_one_line(
    ppdet_registered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slim_det.evaluate.data import replacements

    def unreachable(*arguments: Any) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(replacements, "_download_of_ppdet", unreachable)
    with pytest.raises(DataError) as caught:
        replacements._download("dataset/coco", "annotations/person.json", "")
    assert str(caught.value) == (
        "the data set 'dataset/coco' has no 'annotations/person.json', and cannot be downloaded: "
        "no route to host"
    )
