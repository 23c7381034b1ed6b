"""One process of a training that `torchrun` starts; the first writes its losses and the adapter's sum."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sft_toys import prepared

from stepwell.sft.parallel import Ranks

if __name__ == "__main__":
    torch.set_num_threads(1)
    with Ranks.joined() as ranks:
        run = prepared(ranks=ranks, accumulation=2, batch_size=1, dropout=0.1).go()
        weights = [float(parameter.detach().double().sum()) for parameter in run.lora.parameters()]
        Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps({"losses": run.losses, "weights": weights}))
