"""Shares of tissue, of a volume whose shares are counted by hand."""

import numpy as np
import pytest

from ctflow.metrics.tissues import tissue_shares


def test_shares_of_a_body_with_an_air_hole():
    hu = np.full((2, 10, 10), -1000, np.float32)
    hu[:, 1:9, 1:9] = 40.0  # 64 voxels of soft tissue a slice
    hu[:, 3:5, 3:5] = -900.0  # lung, enclosed: 4
    hu[:, 6, 6:8] = 700.0  # bone: 2
    hu[:, 7, 2:7] = -100.0  # fat: 5
    hu[0, 0, 0] = 700.0  # apart from the rest, and of the body all the same
    shares = tissue_shares(hu)
    assert shares["body"] == pytest.approx(129 / 200)
    assert shares["lung of body"] == pytest.approx(8 / 129)
    assert shares["bone of body"] == pytest.approx(5 / 129)
    assert shares["fat of body"] == pytest.approx(10 / 129)
    assert shares["soft tissue of body"] == pytest.approx(2 * (64 - 11) / 129)
    assert shares["mean HU"] == pytest.approx(float(hu.mean()))


def test_air_alone_has_no_body():
    shares = tissue_shares(np.full((1, 4, 4), -1000, np.float32))
    assert shares["body"] == 0 and shares["lung of body"] == 0
