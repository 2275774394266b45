"""Encoding in chunks without keeping activations, against encoding the same chunks with all of them kept."""

import itertools
import weakref

import pytest
import torch
from torch import nn

from bench import memory
from clead.models import cached_encoding
from clead_kernels import nt_xent, sup_con

ROWS, CHUNK = 14, 4  # four chunks, of 4, 4, 3 and 3 rows


def encoder():
    """Anyone's: batch norm and dropout in train mode, a layer that is used twice."""
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.4), shared, nn.ReLU(), shared)
    return net.double()


@pytest.fixture
def x():
    return torch.randn(ROWS, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


LOSSES = {
    "simclr": lambda z: nt_xent(z, temperature=0.5),
    "sup_con": lambda z: sup_con(z, torch.arange(len(z)) % 3, temperature=0.1),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_loss_and_gradients_are_those_of_the_chunks_with_everything_kept(x, loss):
    plain, cached = encoder(), encoder()
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(5)
    expected = loss(torch.cat([plain(part) for part in theirs.split([4, 4, 3, 3])]))
    expected.backward()
    torch.manual_seed(5)
    found = loss(cached_encoding(cached, mine, chunk=CHUNK))
    torch.rand(3)  # the second pass must not depend on what was drawn meanwhile
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    gradients = zip([mine, *cached.parameters()], [theirs, *plain.parameters()], strict=True)
    for one, other in gradients:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-11, atol=1e-14)
    states = zip(cached.state_dict().values(), plain.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in states) and cached[1].num_batches_tracked == 4


def test_it_is_the_whole_batch_where_no_layer_mixes_images(x):
    net = encoder().eval()
    grads = []
    for z in (net(x), cached_encoding(net, x, chunk=CHUNK)):
        loss = LOSSES["simclr"](z)
        grads.append(torch.autograd.grad(loss, list(net.parameters())))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


def test_without_a_graph_and_with_another_function(x):
    net = encoder().eval()
    with torch.no_grad():
        assert torch.equal(cached_encoding(net, x, chunk=ROWS), net(x))
        z = cached_encoding(net, x, chunk=5, encode=lambda part: net(part)[:, :2])
    assert z.shape == (ROWS, 2) and not z.requires_grad
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        cached_encoding(net, x, chunk=0)


def test_buffers_are_the_same_tensors_afterwards(x):
    net = encoder()
    before = {name: id(buffer) for name, buffer in net.named_buffers()}
    LOSSES["simclr"](cached_encoding(net, x, chunk=CHUNK)).backward()
    assert before == {name: id(buffer) for name, buffer in net.named_buffers()}


def test_at_most_one_chunk_has_activations_at_a_time(x):
    alive, most = [], []

    class Layer(nn.Module):
        def forward(self, part):
            out = part.sin()
            alive.append(weakref.ref(out))
            most.append(sum(one() is not None for one in alive))
            return out.cos()

    net = nn.Sequential(nn.Linear(6, 8), Layer()).double()
    loss = cached_encoding(net, x, chunk=CHUNK).sum()
    assert not any(one() is not None for one in alive)
    loss.backward()
    assert len(alive) == 8 and max(most) == 1


def _encode(sender, rows, chunk):
    torch.set_num_threads(1)
    memory.return_freed_blocks()
    layers = [[nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()] for _ in range(4)]
    net = nn.Sequential(*itertools.chain.from_iterable(layers))
    images = torch.rand(rows, 8, 16, 16)

    def step(images, chunk):
        z = cached_encoding(net, images, chunk=chunk, encode=lambda part: net(part).mean((2, 3)))
        nt_xent(z, temperature=0.5).backward()

    step(images[:8], 4)  # what it needs is loaded
    sender.send(memory.added_by(lambda: step(images, chunk)))


@pytest.mark.slow
def test_memory_grows_with_the_chunk_and_not_with_the_batch():
    cases = ((512, 32), (2048, 32), (2048, 2048))
    small, large, whole = (memory.in_child(_encode, case, timeout=60.0) for case in cases)
    image = 8 * 16 * 16 * 4 / memory.MIB
    assert whole > 10 * 2048 * image  # what every layer keeps
    assert large < small + 4 and large < 40 * 32 * image
