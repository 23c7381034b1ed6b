"""A step of stage B on latents against its share of a plain LoRA step, in FLOP and in seconds.

SmolLM2-135M's shape with random weights in fp32, 16 rows of 16 latents, LoRA of rank 16 on the first half of the
layers, all losses of stage B's default, the shipped arm `bytes` over paragraphs of about 900 bytes. The plain step is
the cross-entropy of the same answers after as many columns, which are tokens, through the same LoRA. The share is what
a step cannot do without: the plain step, and encoder and adapter alone, from the texts to the prefix; all forward and
backward, without the optimizer. Aims: FLOP and seconds at most 1.15 times the share.

Compared: the cross-entropy of the answers as stage B has it, and as the plain step has it of the same prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import common
from stepwell.answers import Asked
from stepwell.backbone import HFBackbone, Shape
from stepwell.latents.contract import Contract
from stepwell.latents.contract_specs import ContractParams
from stepwell.losses import Weighing, teacher_forced_ce
from stepwell.studies.imprint.models import ByteTokenizer
from stepwell.studies.wire.model import Wire
from stepwell.studies.wire.objective import Objective, Rows, answers_of, read_answers
from stepwell.studies.wire.params import Arm, StageBParams
from stepwell.tasks.base import QA

MOST = 1.15
PARAMS = StageBParams.model_validate({"recipe": {"steps": 1}})


@dataclass(frozen=True, kw_only=True)
class Size:
    shape: Shape
    rows: int
    vectors: int
    sentences: int
    encoder: dict[str, Any]


FULL = Size(
    shape=Shape(
        architecture="llama", vocabulary=49_152, width=576, layers=30, heads=9, key_value_heads=3, inner=1536,
        max_positions=2048,
    ),
    rows=16, vectors=16, sentences=40,
    encoder={"kind": "bytes", "patch": 4, "inner": 256, "layers": 4, "max_bytes": 2048, "width": 256},
)  # fmt: skip
QUICK = Size(
    shape=Shape(architecture="llama", vocabulary=1000, width=64, layers=2, heads=2, inner=128, max_positions=1024),
    rows=4, vectors=4, sentences=4,
    encoder={"kind": "bytes", "patch": 4, "inner": 32, "layers": 1, "heads": 2, "max_bytes": 512, "width": 16},
)  # fmt: skip


class Work:
    """One micro-batch, and what is done with it."""

    def __init__(self, size: Size) -> None:
        backbone = HFBackbone.from_shape(size.shape, device="cpu")
        backbone.tokenizer = ByteTokenizer()
        contract = Contract.of(
            backbone, ContractParams(template="plain", max_prompt_tokens=900, max_answer_tokens=8, instruction="")
        )
        arm = Arm.model_validate({"encoder": size.encoder})
        self.wire = Wire(contract, arm, (size.vectors,), lora=PARAMS.lora)
        self.wire.train()
        self.vectors = size.vectors
        context = "Ada has seven grey cats. " * size.sentences
        self.items = [
            QA(id=str(at), question="Who has cats?", answers=(f"Ada{at}",), context=f"{at}. {context}"[:850])
            for at in range(size.rows)
        ]
        self.rows = Rows(latent=tuple(self.items), text=(), number=0)
        self.objective = Objective(self.wire, PARAMS, tuple(PARAMS.losses.terms), seed=0)
        self.objective.learn_teacher(self.items, size.rows, lambda done: None)

    def forward(self) -> Tensor:
        """The loss of a step of stage B."""
        weighed = Weighing(PARAMS.weights()).step(1.0, self.objective.counts([self.rows], self.vectors))
        return weighed.loss(self.objective.terms(self.rows, self.vectors, step=0, gold=1.0))

    def stage_b(self) -> None:
        """A step of stage B."""
        with self.wire.speaking():
            self.forward().backward()
        self._forget()

    def plain(self) -> None:
        """A plain LoRA step of the same shape."""
        backbone, contract = self.wire.backbone, self.wire.contract
        columns = len(contract.bos) + self.vectors + len(contract.anchor)
        with self.wire.speaking():
            self.answered(Asked.of_ids(backbone, [[5] * columns] * len(self.items))).backward()
        self._forget()

    def encoder(self) -> None:
        """Encoder and adapter alone."""
        self.prefix().sum().backward()
        self._forget()

    def share(self) -> None:
        """What a step cannot do without."""
        self.plain()
        self.encoder()

    def prefix(self) -> Tensor:
        """Of all rows."""
        found = self.wire.prefix(self.wire.latents(self.items, self.vectors))
        assert isinstance(found, Tensor)
        return found

    def answered(self, asked: Asked) -> Tensor:
        """Cross-entropy of the answers (), summed."""
        contract = self.wire.contract
        answers = answers_of(contract, [contract.target(item) for item in self.items])
        return teacher_forced_ce(read_answers(self.wire.backbone, asked, answers)).sum

    @torch.no_grad()
    def compare(self) -> None:
        """Both ways have the same cross-entropy of the same prefix."""
        with self.wire.speaking():
            ours = float(self.objective.terms(self.rows, self.vectors, step=0, gold=1.0)["teacher_forced"].sum)
            theirs = float(self.answered(self.wire.asked(self.prefix())))
        common.same("cross-entropy", abs(ours - theirs) <= 1e-4 * abs(theirs), f"{ours:.6g} and {theirs:.6g} nats")

    def _forget(self) -> None:
        for part in self.wire.parts().values():
            part.zero_grad(set_to_none=True)


def flop(work: Any) -> int:
    """Of one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def main(arguments: Sequence[str] | None = None) -> None:
    given = common.parser(__doc__).parse_args(arguments)
    common.header("bench_wire", given, arguments)
    size = QUICK if given.quick else FULL
    with common.threads(given.threads):
        work = Work(size)
        work.compare()
        step, plain, encoder = flop(work.stage_b), flop(work.plain), flop(work.encoder)
        print(f"{size.rows} rows of {size.vectors} latents, {size.shape.layers} layers of width {size.shape.width}")
        print(f"  FLOP: stage B {step:.4g}; plain LoRA {plain:.4g}, encoder and adapter {encoder:.4g}")
        common.aim("FLOP, of the share", step / (plain + encoder), "<=", MOST, meant=not given.quick)
        work.stage_b()
        work.share()
        pairs = given.pairs or (2 if given.quick else 7)
        found = common.in_pairs(work.stage_b, work.share, pairs=pairs, kind=given.clock)
        common.show_pairs("stage B / share", ("stage B", "share"), found)
        common.aim("seconds, of the share", found.ratio, "<=", MOST, meant=not given.quick)


if __name__ == "__main__":
    main()
