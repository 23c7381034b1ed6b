"""One process of the trainings that `torchrun` starts; each writes their losses and the adapters' sums."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sft_toys import prepared

from stepwell.ranks import Ranks

if __name__ == "__main__":
    torch.set_num_threads(1)
    told = []
    with Ranks.joined("cpu") as ranks:
        for options in json.loads(sys.argv[2]):
            run = prepared(ranks=ranks, **options).go()
            weights = [float(parameter.detach().double().sum()) for parameter in run.lora.parameters()]
            told.append({"losses": run.losses, "weights": weights})
    Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps(told))
