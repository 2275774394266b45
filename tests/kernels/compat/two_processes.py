"""Run by test_gather.py, once per rank: losses and gradients of this process's half of the rows, saved to a file."""

from __future__ import annotations

import os
import sys
from itertools import product

import torch
from torch import distributed

from clead_kernels.compat.lightly import NTXentLoss
from clead_kernels.compat.open_clip import ClipLoss
from clead_kernels.compat.sentence_transformers import MultipleNegativesRankingLoss

ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
BANK = (7, 5)


def losses(rank):
    queue = NTXentLoss(memory_bank_size=BANK, gather_distributed=True).double()
    queue.bank.copy_(torch.eye(*BANK))
    yield "lightly", NTXentLoss(gather_distributed=True)
    yield "lightly, bank", queue
    for local, grad in product((False, True), repeat=2):
        clip = ClipLoss(local_loss=local, gather_with_grad=grad, rank=rank, world_size=2)
        yield f"open_clip {local} {grad}", lambda x, y, loss=clip: loss(x, y, 3.0)
    ranking = MultipleNegativesRankingLoss(scale=3.0, gather_across_devices=True, directions=ALL)
    yield "sentence_transformers", lambda x, y: ranking(x, y, y.flip(1))
    yield "bank afterwards", lambda x, y: queue.bank.sum() + 0 * (x.sum() + y.sum())


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), sys.argv[2]
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name, loss in losses(rank):
        rows = [half.requires_grad_() for half in torch.load(f"{folder}/rows.pt")[rank]]
        value = loss(*rows)
        value.backward()
        found[name] = (value.detach(), *(x.grad for x in rows))
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
    # Not by sys.exit: gloo's threads may still drop tensors, which ends the process when Python is gone by then.
    os._exit(0)
