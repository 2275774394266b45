"""Streams: what they are made of, and how they are joined."""

import pytest
import torch

from clead.rng import Rng
from clead_kernels import philox


@pytest.mark.parametrize("draws", [1, 6, 33])
def test_uniform_numbers_are_the_top_bits_of_the_words(draws):
    rng = Rng(2**64 - 3, torch.tensor([0, 7, 2**32 - 1]) | (5 << 32), step=2**32 + 9)
    words = philox.random_words(rng.key, rng.sample_ids, draws, step=9)
    expected = (words >> 8).double() / 2**24
    assert torch.equal(rng.uniform(draws).double(), expected)
    torch.testing.assert_close(rng.uniform(draws, -1, 3).double(), 4 * expected - 1, rtol=0, atol=5e-7)
    assert rng.uniform(draws).dtype == torch.float32


def test_joined_streams_are_the_streams_one_behind_the_other():
    rng = Rng.create(3, "augment", torch.arange(4), step=2)
    assert torch.equal(rng.cat(rng.view(1)).uniform(5), torch.cat([rng.uniform(5), rng.view(1).uniform(5)]))
    with pytest.raises(ValueError, match="same key and step"):
        rng.cat(rng.at(3))
