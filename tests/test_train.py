"""The training loop, against a bare loop written out here, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.nn import functional as F

from stepwell.errors import Interrupted, StageFailed
from stepwell.recipe import Curriculum, Monitors, Recipe, StageMix
from stepwell.stage import Memory, StageContext
from stepwell.train import Stuck, Training, draw_stage, load_weights, new_optimizers, save_weights

STEPS_PER_EPOCH = 4
OFF = Monitors(nan="off", flat="off", divergence="off", breakthrough="off", collapse="off")
Batch = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.Dropout(dropout), nn.Tanh(), nn.Linear(16, 5)).to(dtype)


@dataclass
class Toy:
    """Classifies; an item without a label (-100) has nothing supervised. Validation follows a script."""

    module: nn.Sequential = field(default_factory=network)
    script: Sequence[int] = (0,)
    n: int = 100
    looks: list[tuple[int, bool]] = field(default_factory=list)
    spoil: Callable[[Tensor], Tensor] = lambda nats: nats
    seen: list[torch.dtype] = field(default_factory=list)
    modes: set[bool] = field(default_factory=set)
    losses: list[float] = field(default_factory=list)
    alike: bool = True

    def objective(self, batch: Batch) -> tuple[Tensor, int]:
        x, y = batch
        logits = self.module(x.to(next(self.module.parameters()).dtype))
        self.seen.append(logits.dtype)
        self.modes.add(self.module.training)
        return self.spoil(F.cross_entropy(logits.to(torch.float64), y, reduction="sum")), self.supervised(batch)

    def supervised(self, batch: Batch) -> int:
        return int((batch[1] != -100).sum())

    def parts(self, batch: Batch, count: int) -> list[Batch]:
        return list(zip(batch[0].chunk(count), batch[1].chunk(count), strict=True))

    def stepped(self, loss: float) -> None:
        self.losses.append(loss)

    def validate(self, stage: int) -> tuple[int, int]:
        self.looks.append((stage, self.module.training))
        return self.script[min(len(self.looks), len(self.script)) - 1], self.n


@dataclass
class Data:
    """Items that depend on the step alone, cut into micro-batches of these sizes."""

    sizes: tuple[int, ...] = (12,)
    steps_per_epoch: int = STEPS_PER_EPOCH
    drawn: list[int] = field(default_factory=list)

    def batches(self, step: int, stages: Callable[[torch.Generator], int]) -> list[Batch]:
        generator = torch.Generator().manual_seed(1000 + step)
        self.drawn.append(stages(generator))
        x = torch.randn(12, 6, dtype=torch.float64, generator=generator)
        y = torch.randint(0, 5, (12,), generator=generator)
        y[torch.rand(12, generator=generator) < 0.4] = -100
        y[0] = 1
        return list(zip(x.split(self.sizes), y.split(self.sizes), strict=True))


def context(folder: Path, recorder: Memory | None = None, stop: Callable[[], bool] = lambda: False) -> StageContext:
    job: Any = SimpleNamespace(id="train.toy.0", stage="train", kind="toy", axes={}, params={}, needs=())
    return StageContext(
        job=job, folder=folder, inputs={}, threads=1, seed=0, asked_device="cpu", recorder=recorder or Memory(),
        stop_asked=stop,
    )  # fmt: skip


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {"steps": 10, "lr": 1e-2, "log_every": 1, "checkpoint_every": 100, **changes}
    return Recipe(**fields)


def training(folder: Path, **changes: Any) -> tuple[Training, Memory]:
    recorder = changes.pop("recorder", None) or Memory()
    stop = changes.pop("stop", lambda: False)
    fields: dict[str, Any] = {
        "model": Toy(), "stream": Data(), "recipe": recipe(), "curriculum": None, "monitors": OFF, "seed": 3, **changes
    }  # fmt: skip
    return Training(ctx=context(folder, recorder, stop), **fields), recorder


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def of(recorder: Memory, kind: str) -> list[dict[str, Any]]:
    return [record for record in recorder.records if record["kind"] == kind]


def bare(
    steps: int, lr: Callable[[int], float], *, clip: float | None = None, rebuilt: Sequence[int] = ()
) -> tuple[nn.Sequential, list[float]]:
    """The same training in a dozen lines: one batch a step, the mean over its supervised items."""
    module = network()
    norms: list[float] = []
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.01)
    for step in range(steps):
        if step in rebuilt:
            optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.01)
        ((x, y),) = Data().batches(step, lambda _: 0)
        keep = y != -100
        loss = F.cross_entropy(module(x[keep]), y[keep])
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        norms.append(norm)
        scale = 1.0 if clip is None or norm <= clip else clip / norm
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            parameter.grad = gradient * scale
        optimizer.param_groups[0]["lr"] = lr(step)
        optimizer.step()
    return module, norms


# ---- one step


@pytest.mark.parametrize("sizes", [(12,), (3, 3, 3, 3), (1, 7, 4), (11, 1)])
def test_accumulation_equals_one_large_batch(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    loop, recorder = training(tmp_path, stream=Data(sizes))
    loop.run()
    module, norms = bare(10, lambda _: 1e-2)
    torch.testing.assert_close(weights(loop.model.module), weights(module), rtol=0, atol=1e-13)
    assert [record["grad_norm"] for record in of(recorder, "step")] == pytest.approx(norms, rel=1e-10)


def test_a_mean_over_micro_batches_would_be_noticed(tmp_path: Path) -> None:
    """Items without a label make micro-batches of unlike weight: their means' mean is another gradient."""
    loop, _ = training(tmp_path, stream=Data((1, 7, 4)))
    loop.run()
    module = network()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.01)
    for step in range(10):
        optimizer.zero_grad()
        for x, y in Data((1, 7, 4)).batches(step, lambda _: 0):
            if (y != -100).any():
                (F.cross_entropy(module(x), y) / 3).backward()
        optimizer.step()
    assert (weights(loop.model.module) - weights(module)).abs().max() > 1e-3


def test_the_loss_is_nats_a_supervised_token(tmp_path: Path) -> None:
    loop, recorder = training(tmp_path, recipe=recipe(steps=1), stream=Data((5, 7)))
    loop.run()
    ((x, y),) = Data().batches(0, lambda _: 0)
    assert of(recorder, "step")[0]["loss"] == pytest.approx(F.cross_entropy(network()(x), y).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "lr"),
    [
        ({"schedule": "constant"}, lambda s: 1e-2),
        ({"warmup_steps": 4}, lambda s: 1e-2 * min(1.0, (s + 1) / 4)),
        ({"schedule": "decay", "decay_share": 0.5}, lambda s: 1e-2 * min(1.0, (10 - s) / 5)),
        ({"schedule": "decay", "decay_share": 1.0, "warmup_steps": 3},
         lambda s: 1e-2 * min(1.0, (s + 1) / 3) * (10 - s) / 10),
    ],
)  # fmt: skip
def test_the_schedule_is_its_formula(tmp_path: Path, settings: dict[str, Any], lr: Callable[[int], float]) -> None:
    loop, recorder = training(tmp_path, recipe=recipe(**settings))
    loop.run()
    assert [record["lr"] for record in of(recorder, "step")] == pytest.approx([lr(s) for s in range(10)], rel=1e-12)
    module, _ = bare(10, lr)
    torch.testing.assert_close(weights(loop.model.module), weights(module), rtol=0, atol=1e-13)


@pytest.mark.parametrize("clip", [None, 0.05, 1e9])
def test_clipping_bounds_the_gradient_and_the_norm_is_told_before(tmp_path: Path, clip: float | None) -> None:
    loop, recorder = training(tmp_path, recipe=recipe(clip=clip))
    loop.run()
    module, norms = bare(10, lambda _: 1e-2, clip=clip)
    # torch adds 1e-6 to the norm it divides by.
    torch.testing.assert_close(weights(loop.model.module), weights(module), rtol=0, atol=1e-6)
    assert [record["grad_norm"] for record in of(recorder, "step")] == pytest.approx(norms, rel=1e-3)
    assert min(norms) > 0.05


# ---- which optimizer gets what


def test_muon_gets_the_matrices_of_the_layers_and_adamw_the_rest() -> None:
    module = nn.ModuleDict({
        "embedding": nn.Embedding(40, 8), "norm": nn.LayerNorm(8), "layer": nn.Linear(8, 12), "square": nn.Linear(8, 8),
        "head": nn.Linear(8, 40, bias=False), "still": nn.Linear(8, 8).requires_grad_(False),
    })  # fmt: skip
    muon, adamw = new_optimizers(module, recipe(optimizer="muon", muon_lr=3e-3, lr=1e-4))
    names = {id(p): name for name, p in module.named_parameters()}
    given = [{names[id(p)] for group in opt.param_groups for p in group["params"]} for opt in (muon, adamw)]
    assert given[0] == {"layer.weight", "square.weight"}
    assert given[1] == {"embedding.weight", "norm.weight", "norm.bias", "layer.bias", "square.bias", "head.weight"}
    assert (muon.defaults["lr"], adamw.defaults["lr"]) == (3e-3, 1e-4)


def test_both_optimizers_follow_the_schedule(tmp_path: Path) -> None:
    settings = recipe(steps=10, optimizer="muon", muon_lr=3e-2, lr=1e-2, warmup_steps=5, schedule="decay")
    loop, _ = training(tmp_path, recipe=settings)
    start = weights(loop.model.module)
    loop.run()
    assert loop.optimizers[0].param_groups[0]["lr"] == pytest.approx(3 * loop.optimizers[1].param_groups[0]["lr"])
    assert not torch.equal(weights(loop.model.module), start)


# ---- the optimizer's memory


@pytest.mark.parametrize(
    ("reset", "rebuilt", "age"), [("epoch", (4, 8), 2), ("stage", (8,), 2), ("never", (), 10)]
)  # fmt: skip
def test_moments_are_forgotten_when_the_recipe_says_so(
    tmp_path: Path, reset: str, rebuilt: tuple[int, ...], age: int
) -> None:
    curriculum = Curriculum(stages=3, epochs_per_stage=2)
    loop, recorder = training(tmp_path, recipe=recipe(reset_optimizer=reset), curriculum=curriculum)
    loop.run()
    module, _ = bare(10, lambda _: 1e-2, rebuilt=rebuilt)
    torch.testing.assert_close(weights(loop.model.module), weights(module), rtol=0, atol=1e-13)
    assert recorder.state is not None
    # AdamW counts its own steps since it was made.
    assert {float(moments["step"]) for moments in recorder.state["optimizers"][0]["state"].values()} == {age}


def test_the_three_policies_differ(tmp_path: Path) -> None:
    found = [weights(bare(10, lambda _: 1e-2, rebuilt=rebuilt)[0]) for rebuilt in ((4, 8), (8,), ())]
    assert all((a - b).abs().max() > 1e-4 for a, b in ((found[0], found[1]), (found[1], found[2])))


# ---- the curriculum


@pytest.mark.parametrize(("stages", "epochs_per_stage"), [(2, 1), (3, 2), (6, 5), (0, 2)])
def test_a_stage_is_the_epoch_divided_by_epochs_per_stage(tmp_path: Path, stages: int, epochs_per_stage: int) -> None:
    data, toy = Data(steps_per_epoch=2), Toy()
    epochs = (stages + 2) * epochs_per_stage
    loop, recorder = training(
        tmp_path, stream=data, model=toy, recipe=recipe(steps=None, epochs=epochs),
        curriculum=Curriculum(stages=stages, epochs_per_stage=epochs_per_stage),
    )  # fmt: skip
    loop.run()
    wanted = [min(epoch // epochs_per_stage, stages) for epoch in range(epochs) for _ in range(2)]
    assert data.drawn == wanted
    steps = of(recorder, "step")
    assert [record["curriculum_stage"] for record in steps] == wanted
    assert [record["epoch"] for record in steps] == [epoch + 1 for epoch in range(epochs) for _ in range(2)]
    # Each epoch is validated at its end, in the stage that it was trained in.
    assert [stage for stage, _ in toy.looks] == wanted[1::2]
    advances = of(recorder, "advance")
    assert [(a["step"], a["curriculum_stage"]) for a in advances] == [
        (2 * epochs_per_stage * k, k) for k in range(1, stages + 1)
    ]
    assert {a["reason"] for a in advances} <= {f"{epochs_per_stage} epochs in the stage"}


def test_the_last_step_does_not_open_a_stage(tmp_path: Path) -> None:
    """A stage that no step was trained in must not be the one that is evaluated."""
    loop, recorder = training(tmp_path, recipe=recipe(steps=8), curriculum=Curriculum(stages=3, epochs_per_stage=1))
    assert loop.run().stage == 1
    assert len(of(recorder, "advance")) == 1


def test_arms_without_stages_have_none(tmp_path: Path) -> None:
    loop, recorder = training(tmp_path)
    loop.run()
    assert {record["curriculum_stage"] for record in of(recorder, "step") + of(recorder, "validation")} == {None}
    assert of(recorder, "advance") == []


def by_accuracy(**changes: Any) -> Curriculum:
    return Curriculum(**{"stages": 3, "advance": "accuracy", "bar": 0.8, "min_steps": 2, **changes})


@pytest.mark.parametrize(
    ("script", "settings", "wanted"),
    [
        # one look every 2 steps, 10 of them; (step, new stage) of the advances
        ([10, 79, 80, 20, 90, 30, 30, 85, 85, 99], {}, [(6, 1), (10, 2), (16, 3)]),
        ([90] * 10, {"min_steps": 6}, [(6, 1), (12, 2), (18, 3)]),
        ([10] * 9 + [90], {}, []),  # the last step opens no stage: no step would be trained in it
        ([10] * 10, {"max_steps": 8}, [(8, 1), (16, 2)]),
        ([10] * 10, {}, []),
        ([10, 10, 10, 90, 10, 10, 10, 10, 10, 10], {"max_steps": 10}, [(8, 1), (18, 2)]),
    ],
)
def test_a_stage_ends_by_accuracy(
    tmp_path: Path, script: list[int], settings: dict[str, Any], wanted: list[tuple[int, int]]
) -> None:
    toy = Toy(script=script)
    loop, recorder = training(
        tmp_path, model=toy, recipe=recipe(steps=20, validate_every=2), curriculum=by_accuracy(**settings)
    )
    loop.run()
    advances = of(recorder, "advance")
    assert [(a["step"], a["curriculum_stage"]) for a in advances] == wanted
    for advance, (step, _) in zip(advances, wanted, strict=True):
        right = script[step // 2 - 1]
        reason = f"accuracy {right / 100:.3f} reached 0.8" if right >= 80 else "the most it is given"
        assert reason in advance["reason"]


def test_validation_is_without_dropout_and_training_with_it(tmp_path: Path) -> None:
    toy = Toy(network(dropout=0.5))
    loop, recorder = training(tmp_path, model=toy, recipe=recipe(validate_every=3))
    toy.module.eval()
    loop.run()
    assert [training for _, training in toy.looks] == [False] * 4 and toy.modes == {True}
    found = [(record["step"], record["n"]) for record in of(recorder, "validation")]
    assert found == [(3, 100), (6, 100), (9, 100), (10, 100)]


def test_an_empty_steering_split_has_no_accuracy(tmp_path: Path) -> None:
    loop, recorder = training(tmp_path, model=Toy(n=0), curriculum=by_accuracy())
    loop.run()
    assert {record["accuracy"] for record in of(recorder, "validation")} == {None}
    assert of(recorder, "advance") == []


# ---- the mixture of stages


DRAWS = 20_000


@pytest.mark.parametrize(
    ("mix", "stage", "wanted"),
    [
        ({"share": 0.3}, 3, [0.1, 0.1, 0.1, 0.7, 0]),
        ({"share": 0.3, "weights": "linear"}, 3, [0.05, 0.1, 0.15, 0.7, 0]),
        ({"share": 1.0, "weights": "linear"}, 4, [0.1, 0.2, 0.3, 0.4, 0]),
        ({"share": 0.5, "over": "all"}, 1, [0.1, 0.6, 0.1, 0.1, 0.1]),
        ({"share": 0.6, "over": "all", "weights": "linear"}, 2, [0.04, 0.08, 0.52, 0.16, 0.2]),
    ],
)
def test_stages_are_drawn_as_the_mixture_says(mix: dict[str, Any], stage: int, wanted: list[float]) -> None:
    curriculum = Curriculum(stages=4, mix=StageMix(**mix))
    generator = torch.Generator().manual_seed(11)
    drawn = torch.tensor([draw_stage(curriculum, stage, generator) for _ in range(DRAWS)])
    counts = torch.bincount(drawn, minlength=5).tolist()
    possible = [k for k, p in enumerate(wanted) if p]
    assert chisquare([counts[k] for k in possible], [DRAWS * wanted[k] for k in possible]).pvalue > 1e-3
    assert sum(counts[k] for k in possible) == DRAWS


@pytest.mark.parametrize("mix", [{}, {"share": 0.0, "over": "all"}, {"share": 1.0}])
def test_without_a_share_or_an_earlier_stage_it_is_the_present_one(mix: dict[str, Any]) -> None:
    curriculum, generator = Curriculum(stages=4, mix=StageMix(**mix)), torch.Generator().manual_seed(0)
    assert {draw_stage(curriculum, 0, generator) for _ in range(200)} == {0}


def test_a_mixture_never_advances_a_stage(tmp_path: Path) -> None:
    data = Data()
    curriculum = Curriculum(stages=2, epochs_per_stage=1, mix=StageMix(share=0.9))
    loop, recorder = training(tmp_path, stream=data, recipe=recipe(steps=40), curriculum=curriculum)
    loop.run()
    assert set(data.drawn[8:]) == {0, 1, 2}
    assert [record["curriculum_stage"] for record in of(recorder, "step")] == [0] * 4 + [1] * 4 + [2] * 32


# ---- going on after a kill


@pytest.mark.parametrize("kill_at", range(1, 14))
@pytest.mark.parametrize(
    ("reset", "optimizer"), [("epoch", "adamw"), ("stage", "adamw"), ("never", "adamw"), ("never", "muon")]
)
def test_a_resumed_training_is_the_same_bit_by_bit(tmp_path: Path, kill_at: int, reset: str, optimizer: str) -> None:
    settings: dict[str, Any] = {
        "recipe": recipe(
            steps=14,
            checkpoint_every=3,
            validate_every=2,
            reset_optimizer=reset,
            warmup_steps=5,
            schedule="decay",
            optimizer=optimizer,
            muon_lr=1e-2 if optimizer == "muon" else None,
        ),
        "curriculum": by_accuracy(mix=StageMix(share=0.5)),
        "monitors": Monitors(flat_steps=4, flat_share=0.9),
    }
    script = [10, 90, 20, 90, 10, 95, 30]

    def toy(looks: int = 0) -> Toy:
        # What was asked before the checkpoint is behind; the script itself is no part of the training.
        return Toy(network(dropout=0.3), script=script, looks=[(0, False)] * looks)

    class Killed(Exception):
        pass

    class Mortal(Data):
        def batches(self, step: int, stages: Callable[[torch.Generator], int]) -> list[Batch]:
            if step == kill_at:
                raise Killed
            return super().batches(step, stages)

    whole, untouched = training(tmp_path, model=toy(), **settings)
    whole.run()
    first, recorder = training(tmp_path, model=toy(), stream=Mortal(), **settings)
    with pytest.raises(Killed):
        first.run()
    torch.manual_seed(987)  # another process has another random state
    torch.randn(7)
    state = recorder.restored()
    done = kill_at // 3 * 3
    assert (state is None) == (done == 0)
    second, _ = training(tmp_path, model=toy(looks=done // 2), recorder=recorder, **settings)
    second.run(state)
    assert recorder.records == untouched.records
    assert torch.equal(weights(second.model.module), weights(whole.model.module))


def test_dropout_depends_on_the_seed_and_not_on_what_ran_before(tmp_path: Path) -> None:
    found = []
    for seed, drawn in ((3, 0), (3, 50), (4, 0)):
        torch.manual_seed(0)
        torch.randn(drawn)
        loop, _ = training(tmp_path, model=Toy(network(dropout=0.5)), seed=seed)
        loop.run()
        found.append(weights(loop.model.module))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_asked_to_stop_it_stops_after_a_checkpoint(tmp_path: Path) -> None:
    loop, recorder = training(tmp_path, recipe=recipe(checkpoint_every=4), stop=lambda: True)
    with pytest.raises(Interrupted, match=r"stage train\.toy\.0: stopped, as asked"):
        loop.run()
    assert recorder.state is not None and recorder.state["progress"]["step"] == 4
    assert len(of(recorder, "step")) == 4


# ---- off the ground


def test_a_training_that_stays_below_the_bar_is_stuck(tmp_path: Path) -> None:
    loop, recorder = training(
        tmp_path, model=Toy(script=[10, 69, 20]), recipe=recipe(steps=20), restart=(0.7, 8), curriculum=by_accuracy()
    )
    with pytest.raises(Stuck) as caught:
        loop.run()
    assert caught.value.step == 8
    assert caught.value.reason == "accuracy 0.69 in stage 0, below 0.7 after 8 steps"
    assert len(of(recorder, "validation")) == 2


@pytest.mark.parametrize(
    ("script", "curriculum"),
    [([70, 10, 10, 10, 10], None), ([10, 85, 10, 10, 10], by_accuracy())],
    ids=["the bar once reached is not asked for again", "a later stage is another task"],
)
def test_what_came_off_the_ground_is_not_stuck(
    tmp_path: Path, script: list[int], curriculum: Curriculum | None
) -> None:
    settings = {"recipe": recipe(steps=20, checkpoint_every=8), "restart": (0.7, 8), "curriculum": curriculum}
    loop, _ = training(tmp_path, model=Toy(script=script), **settings)
    assert loop.run().step == 20
    # The same after a kill: the checkpoint of step 8 knows it.
    resumed, other = training(tmp_path, model=Toy(script=script), **settings)
    resumed.total_steps = 8
    resumed.run()
    again, _ = training(tmp_path, model=Toy(script=script, looks=[(0, False)] * 2), recorder=other, **settings)
    assert again.run(other.restored()).step == 20


def test_without_a_rule_nothing_is_given_up(tmp_path: Path) -> None:
    loop, _ = training(tmp_path, model=Toy(script=[0]), restart=None)
    assert loop.run().step == 10


# ---- best and last


def test_the_best_is_of_the_last_stage_and_only_when_better(tmp_path: Path) -> None:
    told: list[int] = []
    toy = Toy(script=[99, 50, 40, 60, 60, 70, 10])
    loop, _ = training(
        tmp_path, model=toy, recipe=recipe(steps=28), curriculum=Curriculum(stages=1, epochs_per_stage=1)
    )
    loop.on_best = lambda: told.append(len(toy.looks))
    progress = loop.run()
    assert told == [2, 4, 6], "the .99 of stage 0 counts for nothing, .60 again is no better"
    assert progress.best == 0.7


def test_weights_come_back_exactly_tied_ones_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self, fill: float) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight
            self.vector = nn.Buffer(torch.full((3,), fill))

    one, other = Tied(1.0), Tied(2.0)
    path = tmp_path / "deep" / "last.safetensors"
    save_weights(one, path)
    load_weights(other, path)
    assert torch.equal(one.embedding.weight, other.embedding.weight) and torch.equal(one.vector, other.vector)
    assert other.head.weight is other.embedding.weight
    assert [p.name for p in path.parent.iterdir()] == ["last.safetensors"], "nothing half-written is left"
    with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key"):
        load_weights(nn.Linear(3, 5), path)


# ---- precision


def test_bf16_is_the_forward_pass_alone(tmp_path: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        toy = Toy(network(dtype=torch.float32))
        loop, recorder = training(tmp_path, model=toy, recipe=recipe(precision=precision))
        loop.run()
        wanted = torch.bfloat16 if precision == "bf16" else torch.float32
        assert set(toy.seen) == {wanted}
        assert recorder.state is not None
        moments = [m["exp_avg"].dtype for m in recorder.state["optimizers"][0]["state"].values()]
        assert {p.dtype for p in toy.module.parameters()} | set(moments) == {torch.float32}
        found[precision] = [record["loss"] for record in of(recorder, "step")]
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.02) and found["bf16"] != found["fp32"]


# ---- monitors in the loop


def spoiled(folder: Path, action: str, value: float = math.nan) -> tuple[Training, Memory]:
    """Step 4 has a loss that is not finite."""
    count = iter(range(1, 100))
    toy = Toy(spoil=lambda nats: nats * value if next(count) == 4 else nats)
    return training(folder, model=toy, monitors=OFF.model_copy(update={"nan": action}))


@pytest.mark.parametrize("action", ["alert", "off"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_does_not_poison_the_weights(tmp_path: Path, action: str, value: float) -> None:
    loop, recorder = spoiled(tmp_path, action, value)
    loop.run()
    # The bare loop without that step.
    module = network()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.01)
    for step in (0, 1, 2, 4, 5, 6, 7, 8, 9):
        ((x, y),) = Data().batches(step, lambda _: 0)
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(weights(loop.model.module), weights(module), rtol=0, atol=1e-13)
    alerts = of(recorder, "alert")
    assert [(a["monitor"], a["step"], a["stopped"]) for a in alerts] == [("nan", 4, False)] * (action == "alert")
    assert all(math.isfinite(r["loss"]) for r in of(recorder, "step") if r["step"] != 4)


def test_a_monitor_that_is_to_stop_fails_the_stage_and_keeps_what_it_recorded(tmp_path: Path) -> None:
    loop, recorder = spoiled(tmp_path, "stop")
    with pytest.raises(StageFailed) as caught:
        loop.run()
    assert str(caught.value) == (
        "stage train.toy.0: monitor `nan` stopped the training at step 4: loss nan, gradient norm nan: not finite\n"
        "  Way out: Look at the curves; a lower lr or a gradient clip often helps. `monitors.nan: alert` in the "
        "stage's params lets it go on."
    )
    assert caught.value.exit_code == 4
    assert len(of(recorder, "step")) == 3
    (alert,) = of(recorder, "alert")
    assert alert["stopped"] is True and bool(torch.isfinite(weights(loop.model.module)).all())


def test_divergence_is_seen_in_a_real_training(tmp_path: Path) -> None:
    settings = recipe(steps=200, lr=30.0, schedule="constant", warmup_steps=100)
    loop, recorder = training(tmp_path, recipe=settings, monitors=Monitors(divergence="alert", nan="alert"))
    loop.run()
    assert "divergence" in {alert["monitor"] for alert in of(recorder, "alert")}
    calm, recorder = training(tmp_path, recipe=recipe(steps=200), monitors=Monitors())
    calm.run()
    assert of(recorder, "alert") == []


def test_copies_of_a_training_share_nothing(tmp_path: Path) -> None:
    """`asdict` and `state_dict` hand out live objects: a checkpoint must not change with later steps."""
    loop, recorder = training(tmp_path, recipe=recipe(steps=8, checkpoint_every=4))
    states: list[dict[str, Any]] = []
    keep = recorder.save
    recorder.save = lambda state: (states.append(copy.deepcopy(state)), keep(state))[1]  # type: ignore[method-assign]
    loop.run()
    assert [state["progress"]["step"] for state in states] == [4, 8]
    assert not torch.equal(states[0]["model"]["0.weight"], states[1]["model"]["0.weight"])
