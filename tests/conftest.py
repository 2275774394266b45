"""What tests of several commands share; imported inside, as the tests of the kernels run without clead."""

from contextlib import contextmanager

import pytest


@pytest.fixture
def interrupted_at(monkeypatch):
    """``with interrupted_at(step):`` a training that is interrupted in the middle of that step of a stage."""
    from clead.engine import loop

    @contextmanager
    def interrupted(at):
        original = loop._step

        def step(task, batch, *rest):
            if batch.step == at:
                raise KeyboardInterrupt
            return original(task, batch, *rest)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(loop, "_step", step)
            yield

    return interrupted


@pytest.fixture
def acl_file(tmp_path):
    """A file as ACL's code writes it, of a narrow encoder: two batch norms, of which the adversarial one differs."""
    import torch

    from clead.models import BatchNormConfig, ResNet, initialise

    bn = BatchNormConfig(("clean", "adv"), "adv")
    encoder = ResNet(18, in_channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), bn=bn, width=4)
    initialise(encoder, 0)
    state = {}
    for key, value in encoder.state_dict().items():
        key = key.replace(".branch.clean", ".bn_list.0").replace(".branch.adv", ".bn_list.1")
        key = key.replace("downsample.0", "downsample.conv").replace("downsample.1", "downsample.bn")
        if not key.startswith("normalize"):
            state[key] = value + 0.1 if "bn_list.1" in key else value
    torch.save({"state_dict": state}, tmp_path / "acl.pt")
    return tmp_path / "acl.pt"
