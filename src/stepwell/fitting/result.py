"""What a fit gives back: vectors, records, and the ways to use them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from stepwell import models
from stepwell.decode import Decoded, greedy
from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint
from stepwell.fitting.measuring import columns_of
from stepwell.fitting.recipe import FitRecipe
from stepwell.fitting.saving import ABOUT, RECORDS, VECTORS, Stored, saving
from stepwell.latents.prompt import Problem, begins
from stepwell.shapes import Backbone

End = Literal["exact", "steps", "not finite", "not needed", "stopped", "impossible", "failed"]
FINAL: frozenset[str] = frozenset({"exact", "steps", "not finite"})


@dataclass(frozen=True, kw_only=True)
class Record:
    """One restart of one problem; of a problem that could not be tried, too, so that denominators stay.

    A mode with several targets (paraphrases) is exact when one of them is; its nats are their weighted mean, its held
    tokens and its lead those of the best. What was never measured is None, and `end` with `detail` says why.

    Attributes:
        id, restart, seed: whose; the seed is a hash of the run's seed, the problem's id and the restart.
        identity: fingerprint of what was fitted and how: context, targets, mode vectors, recipe and slots.
        end: `exact` (every mode held), `steps` (all taken), `not finite`, `not needed` (an earlier restart was exact),
            `stopped` (the caller asked), `impossible` (`detail` says why), `failed` (an error each time that it was
            tried; `detail` holds it).
        steps: updates made.
        nats: mode -> mean nats a token of the final vectors, EOS included, at temperature 1.
        own: mode -> the same of its first target alone: of the text itself, where paraphrases stand behind it.
        exact: mode -> whether every token, EOS included, leads all others, so that greedy decoding writes the target.
        held: mode -> leading tokens of the target that greedy decoding writes.
        lead: mode -> the smallest lead of a token, in logits.
        tokens: mode -> tokens of the target (of the longest paraphrase), EOS included.
        converged: whether every mode's nats are below its bar; None where no bars were given.
        gradient_cosine: mean over the steps of the cosine between the modes' gradients; None with one mode.
        opposed: share of the steps in which that cosine was negative; None with one mode.
        curve: mode -> (step, nats) at every `curve_every`-th step, as far as they are finite.
    """

    id: str
    restart: int
    seed: int
    identity: str
    end: End
    detail: str | None = None
    steps: int | None = None
    nats: Mapping[str, float] | None = None
    own: Mapping[str, float] | None = None
    exact: Mapping[str, bool] | None = None
    held: Mapping[str, int] | None = None
    lead: Mapping[str, float] | None = None
    tokens: Mapping[str, int] | None = None
    converged: bool | None = None
    gradient_cosine: float | None = None
    opposed: float | None = None
    curve: Mapping[str, tuple[tuple[int, float], ...]] | None = None

    @property
    def all_exact(self) -> bool:
        """Whether every mode is exact."""
        return self.exact is not None and all(self.exact.values())

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)

    @classmethod
    def from_record(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_record`, after JSON too."""
        curve = fields["curve"]
        curve = curve and {mode: tuple((step, nats) for step, nats in points) for mode, points in curve.items()}
        return cls(**{**fields, "curve": curve})


def best_of(records: Iterable[Record]) -> Record | None:
    """The restart with the most exact modes, then the most held tokens, then the fewest nats; None where none ended."""
    return min(
        (record for record in records if record.nats is not None),
        key=lambda r: (
            -sum((r.exact or {}).values()),
            -sum((r.held or {}).values()),
            sum((r.nats or {}).values()),
            r.restart,
        ),
        default=None,
    )


def identity_of(problem: Problem, modes: Mapping[str, str], recipe: FitRecipe, slots: int) -> str:
    """The fingerprint of what is fitted and how; `modes` holds those of the mode vectors, all there is of the model."""
    targets = [[list(target.ids), target.mode, float(target.weight)] for target in problem.targets]
    used = {target.mode: modes.get(target.mode) for target in problem.targets}
    return fingerprint([list(problem.context), targets, used, recipe.model_dump(mode="json"), slots])


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Vectors fitted to problems.

    Attributes:
        vectors: problem id -> (restarts, K, D) in float32 (float64 of such a model) on the CPU; NaN for a restart that
            was not run. A problem of which none was run has none.
        records: one a problem and restart, in the problems' order.
        modes: name -> mode vector (D,).
        stops: end tokens of the targets.
        recipe, slots, seed: how the vectors were fitted.
        backbone: the model, for decoding; not saved.
        contexts: problem id -> tokens before the mode vector, of the problems in `vectors` that have some.
    """

    vectors: Mapping[str, Tensor]
    records: tuple[Record, ...]
    modes: Mapping[str, Tensor]
    stops: tuple[int, ...]
    recipe: FitRecipe
    slots: int
    seed: int
    backbone: Any = None
    contexts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def of(self, id: str) -> tuple[Record, ...]:
        """The records of one problem. Raises StepwellError where there is none."""
        if id not in self._by_id:
            raise StepwellError(f"there is no problem `{id}` in this fit", "its records name the problems")
        return tuple(self._by_id[id])

    @cached_property
    def _by_id(self) -> Mapping[str, Sequence[Record]]:
        found: dict[str, list[Record]] = {}
        for record in self.records:
            found.setdefault(record.id, []).append(record)
        return found

    def best(self, id: str) -> Record:
        """The best restart of a problem, see `best_of`.

        Raises:
            StepwellError: no restart of the problem came to an end.
        """
        mine = self.of(id)
        found = best_of(mine)
        if found is None:
            first = mine[0]
            raise StepwellError(
                f"problem `{id}` has no fitted vectors: {first.end}" + (f" ({first.detail})" if first.detail else ""),
                "see its records",
            )
        return found

    def ended(self) -> list[tuple[Record, Tensor]]:
        """The restarts that came to an end, with their vectors (K, D): what `fit` resumes from."""
        return [(r, self.vectors[r.id][r.restart]) for r in self.records if r.end in FINAL and r.id in self.vectors]

    def prompt(self, id: str, mode: str, restart: int | None = None) -> Tensor:
        """[context, mode, c] (1, C + 1 + K, D) of one problem, for `model.generate(inputs_embeds=...)`.

        The C tokens of its context stand in it as their embeddings.

        Args:
            id: of the problem.
            mode: what is to be written.
            restart: whose vectors; None = the best.

        Raises:
            StepwellError: no such mode or problem, no vectors, or a context without the model to embed it.
        """
        if mode not in self.modes:
            raise StepwellError(f"there is no mode `{mode}`", f"modes: {', '.join(sorted(self.modes))}")
        number = self.best(id).restart if restart is None else restart
        if id not in self.vectors:
            raise StepwellError(f"the vectors of problem `{id}` are not in this fit", "it kept none, or ran none")
        start = begins(self.modes[mode].cpu(), self.vectors[id][number][None])
        return torch.cat((self._context(id).to(start), start), 1) if id in self.contexts else start

    @torch.no_grad()
    def _context(self, id: str) -> Tensor:
        """The embeddings (1, C, D) of a problem's context."""
        if self.backbone is None:
            raise StepwellError(
                f"problem `{id}` has a context of {len(self.contexts[id])} tokens, and there is no model to embed them",
                "load the fit with one: Fitted.load(folder, model)",
            )
        device = next(self.backbone.parameters()).device
        return self.backbone.embed(torch.tensor([self.contexts[id]], device=device)).detach()

    def decode(self, id: str, restart: int | None = None, *, limit: int | None = None) -> dict[str, Decoded]:
        """What the model writes greedily in each mode of a problem.

        Args:
            id: of the problem.
            restart: whose vectors; None = the best.
            limit: new tokens at most, the end token among them; None = as many as the problem's targets have.
        """
        record = self.best(id) if restart is None else self.of(id)[restart]
        if self.backbone is None:
            raise StepwellError("there is no model to decode with", "load the fit with one: Fitted.load(folder, model)")
        if record.tokens is None:
            raise StepwellError(f"restart {record.restart} of `{id}` was not run: {record.end}", "choose another")
        prompts = [self.prompt(id, mode, record.restart)[0] for mode in record.tokens]
        limits = [limit or count for count in record.tokens.values()]
        found = decode_from(self.backbone, prompts, stops=self.stops, limits=limits)
        return dict(zip(record.tokens, found, strict=True))

    def save(self, folder: Path) -> None:
        """Vectors as safetensors, records as JSON lines, the rest as JSON; whole or not at all."""
        with saving(folder) as saved:
            saved.add(self)

    @classmethod
    def load(cls, folder: Path, backbone: Any = None) -> Self:
        """A saved fit, its vectors read when they are asked for. Raises StepwellError where the folder holds none."""
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            with (folder / RECORDS).open(encoding="utf-8") as lines:
                records = tuple(Record.from_record(json.loads(line)) for line in lines)
            vectors, modes, contexts = (
                Stored(folder / VECTORS, f"{kind}/") for kind in ("vectors", "modes", "contexts")
            )
            return cls(
                vectors=vectors, records=records, modes=dict(modes), recipe=FitRecipe.model_validate(about["recipe"]),
                contexts={id: tuple(ids.tolist()) for id, ids in contexts.items()}, backbone=backbone,
                stops=tuple(about["stops"]), slots=about["slots"], seed=about["seed"],
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise StepwellError(f"not a saved fit: {error}", "give a folder that `save` wrote", path=folder) from error

    def to_peft(self, folder: Path, id: str, mode: str, *, base_model: str, restart: int | None = None) -> None:
        """[context, mode, c] as an adapter of PEFT's prompt tuning: `PeftModel.from_pretrained(model, folder)`.

        An adapter is vectors that stand before a text, so the tokens of a context are put in as their embeddings: it
        is whole without them, and counts them among its `num_virtual_tokens`.

        Args:
            folder: is made.
            id, mode, restart: as for `prompt`.
            base_model: hub id or folder of the model, for the adapter's configuration.
        """
        vectors = self.prompt(id, mode, restart)[0].float().contiguous()
        config = getattr(self.backbone, "config", None)
        about = {
            "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model,
            "inference_mode": True, "num_virtual_tokens": len(vectors), "token_dim": vectors.shape[1],
            "num_transformer_submodules": 1, "num_attention_heads": getattr(config, "num_attention_heads", None),
            "num_layers": getattr(config, "num_hidden_layers", None), "prompt_tuning_init": "RANDOM",
        }  # fmt: skip
        with models.whole_folder(folder) as new:
            save_file({"prompt_embeddings": vectors}, new / "adapter_model.safetensors")
            (new / "adapter_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def joined(parts: Iterable[Fitted]) -> Fitted:
    """Fits of different problems (shards of one run) as one, in the order given.

    Raises:
        StepwellError: none at all, parts that were fitted differently, or a problem in two of them.
    """
    found = list(parts)
    if not found:
        raise StepwellError("there are no fits to join", "give one at least")
    first, vectors, records, contexts = found[0], {}, [], {}
    for part in found:
        if (part.recipe, part.slots, part.seed) != (first.recipe, first.slots, first.seed):
            raise StepwellError("the fits have different recipes, slots or seeds", "join shards of one run only")
        if twice := {r.id for r in part.records} & {r.id for r in records}:
            raise StepwellError(f"problem `{min(twice)}` is in two of the fits", "join shards of one run only")
        vectors.update(part.vectors)
        contexts.update(part.contexts)
        records.extend(part.records)
    modes = {name: vector for part in found for name, vector in part.modes.items()}
    stops = tuple(sorted({stop for part in found for stop in part.stops}))
    return replace(first, vectors=vectors, records=tuple(records), modes=modes, stops=stops, contexts=contexts)


@torch.no_grad()
def decode_from(
    backbone: Backbone, prompts: Sequence[Tensor], *, stops: Iterable[int], limits: Sequence[int]
) -> list[Decoded]:
    """Greedy decoding over a cache, of prompts of vectors; those of different lengths are left-padded.

    Args:
        backbone: in evaluation mode.
        prompts: (T, D) each, T of any lengths from 1.
        stops: ids that end a row.
        limits: new tokens of each at most, the end token among them.

    Returns:
        One `Decoded` a prompt, in order.
    """
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    found: dict[int, Decoded] = {}
    while order:
        # The longest first: what they need of the columns of one pass says how many go with them.
        size = max(1, columns_of(backbone, None) // len(prompts[order[-1]]))
        part, order = order[-size:], order[:-size]
        written = _decoded(backbone, [prompts[row] for row in part], stops, [limits[row] for row in part])
        found.update(zip(part, written, strict=True))
    return [found[row] for row in range(len(prompts))]


def _decoded(
    backbone: Backbone, prompts: Sequence[Tensor], stops: Iterable[int], limits: Sequence[int]
) -> list[Decoded]:
    parameter = next(backbone.parameters())
    columns = max(map(len, prompts))
    padded = torch.stack([pad(prompt, (0, 0, columns - len(prompt), 0)) for prompt in prompts])
    embeds = padded.to(device=parameter.device, dtype=parameter.dtype)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=embeds.device)
    mask = torch.arange(columns, device=embeds.device) >= (columns - lengths)[:, None]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = backbone.new_cache()
    hidden = backbone(embeds, positions=positions, mask=mask, cache=cache, skip=columns - 1)[:, -1]
    return greedy(backbone, hidden, cache=cache, mask=mask, positions=lengths, stop=tuple(stops), limit=limits)


def finite(value: float) -> float | None:
    """None for what is no number: undefined is never shown as one."""
    return value if math.isfinite(value) else None
