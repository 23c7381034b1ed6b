"""A toy training stage: what torch is set to while a job runs."""

from __future__ import annotations

import torch
from stepwell_toy import TrainParams

from stepwell.stage import StageContext


def train(params: TrainParams, ctx: StageContext) -> None:
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == ctx.threads
    torch.manual_seed(ctx.seed)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(1, params.steps + 1):
        inputs = torch.randn(32, 8)
        loss = ((model(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ctx.write("step", step=step, loss=loss.item())
