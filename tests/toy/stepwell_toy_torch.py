"""A toy training stage with all that must survive a kill: weights, optimizer, scheduler, the randomness of dropout."""

from __future__ import annotations

import os
import signal

import torch
from stepwell_toy import TrainParams

from stepwell.randomness import random_state, set_random_state
from stepwell.stage import StageContext


def train(params: TrainParams, ctx: StageContext) -> None:
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == ctx.threads
    torch.manual_seed(ctx.seed)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=params.steps)
    step = 0
    state = ctx.restored()
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        set_random_state(state["random"])
        step = state["step"]
    while step < params.steps:
        step += 1
        inputs = torch.randn(32, 8)
        loss = ((model(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        ctx.write("step", step=step, loss=loss.item())
        if step == params.die_at and state is None:
            os.kill(os.getpid(), signal.SIGKILL)
        if step % params.save_every == 0:
            ctx.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "random": random_state(),
                    "step": step,
                }
            )
            ctx.stop_if_asked()
