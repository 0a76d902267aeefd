"""The embedded backbone's features against a plain computation in float64."""

import pytest
import torch
from torch.nn import functional as F

from ctflow.metrics.random_backbone import RandomBackbone


@pytest.mark.parametrize(("dimensions", "shape"), [(2, (6, 1, 40, 40)), (3, (3, 1, 16, 24, 24))])
def test_features_are_those_of_a_plain_computation(dimensions, shape):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    before = images.clone()
    network = RandomBackbone(dimensions)
    convolve, pool = (F.conv2d, F.avg_pool2d) if dimensions == 2 else (F.conv3d, F.avg_pool3d)
    x, expected = images.double() / 127.5 - 1, []
    for stage in range(4):
        x = pool(x, 2) if stage else x
        weight = network.get_buffer(f"weight{stage}").double()
        x = F.leaky_relu(convolve(x, weight, padding=1), 0.2)
        expected += [x.flatten(2).mean(2), x.flatten(2).std(2, unbiased=False)]
    torch.testing.assert_close(network(images).double(), torch.cat(expected, 1), rtol=2e-5, atol=2e-6)
    assert torch.equal(images, before)
