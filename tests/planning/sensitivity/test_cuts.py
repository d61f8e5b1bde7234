"""Masks of what is cut."""

from __future__ import annotations

import numpy as np

from slim_det.planning.sensitivity.cuts import mask_value


def test_masks_have_the_shape_of_what_is_read() -> None:
    keep = np.array([True, False, True])
    assert mask_value(keep, 4, 1).shape == (1, 3, 1, 1)
    assert mask_value(keep, 2, 1).tolist() == [1.0, 0.0, 1.0]
    assert mask_value(keep, 4, 2).ravel().tolist() == [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert mask_value(keep, 4, 1).dtype == np.float32
