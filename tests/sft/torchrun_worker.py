"""One process of a training that `torchrun` starts; the first writes its losses and the adapter's sum."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sft_toys import prepared

from stepwell.ranks import Ranks

if __name__ == "__main__":
    torch.set_num_threads(1)
    with Ranks.joined("cpu") as ranks:
        accumulation, batch_size = map(int, sys.argv[2:4])
        run = prepared(ranks=ranks, accumulation=accumulation, batch_size=batch_size, dropout=float(sys.argv[4])).go()
        weights = [float(parameter.detach().double().sum()) for parameter in run.lora.parameters()]
        Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps({"losses": run.losses, "weights": weights}))
