"""Backbones: a causal language model behind one small class, and the only import of transformers.

A backbone embeds ids, runs from embeddings with an appendable cache, and gives logits only where it is asked. Hidden
states are those after the final norm; nothing else is kept. `HFBackbone` is any causal LM of transformers, by hub id,
by folder, or from scratch by its `Shape`. What is loaded is probed: a model whose logits or cache this class does not
reproduce is refused, never run wrongly.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicLayer
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from stepwell import models
from stepwell.errors import StepwellError
from stepwell.shapes import (
    Backbone,
    Cache,
    Embeds,
    Hidden,
    Ids,
    Logits,
    Mask,
    Positions,
    Precision,
    Rows,
    Shape,
    States,
    pick_device,
)

__all__ = [
    "DTYPES",
    "Backbone",
    "Cache",
    "HFBackbone",
    "HFCache",
    "SentenceEncoder",
    "Shape",
    "convert_gguf",
    "load_tokenizer",
    "renaming",
    "skeleton",
]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


class _Columns:
    """Keys or values (B, H, S, D/H) that grow along S.

    With autograd, growing makes a new tensor. Without it (decoding), columns are written into a buffer with room to
    spare, so that a step copies one column and not S. Only the tensor of the newest length owns the room: whoever
    shares an earlier one sees columns that are never written again.
    """

    ROOM = 32

    def __init__(self, tensor: Tensor, buffer: Tensor | None = None) -> None:
        self.tensor, self.buffer = tensor, buffer

    def appended(self, new: Tensor) -> _Columns:
        old, buffer = self.tensor, self.buffer
        if torch.is_grad_enabled():
            return _Columns(torch.cat((old, new), dim=2))
        before, after = old.shape[2], old.shape[2] + new.shape[2]
        if buffer is None or buffer.shape[2] < after:
            buffer = old.new_empty(*old.shape[:2], after + self.ROOM, old.shape[3])
            buffer[:, :, :before] = old
        buffer[:, :, before:after] = new
        return _Columns(buffer[:, :, :after], buffer)

    def selected(self, rows: Tensor) -> _Columns:
        old, length = self.tensor, self.tensor.shape[2]
        if torch.is_grad_enabled():
            return _Columns(old.index_select(0, rows))
        buffer = old.new_empty(len(rows), old.shape[1], length + self.ROOM, old.shape[3])
        torch.index_select(old, 0, rows, out=buffer[:, :, :length])
        return _Columns(buffer[:, :, :length], buffer)


class HFCache:
    """Keys and values of every layer; appending never writes into a tensor that autograd or another cache may hold."""

    def __init__(self, layers: Sequence[tuple[_Columns, _Columns]] = ()) -> None:
        self.layers = tuple(layers)

    @property
    def length(self) -> int:
        """Cached columns S."""
        return self.layers[0][0].tensor.shape[2] if self.layers else 0

    def select(self, rows: Rows) -> HFCache:
        """The cache of some rows, by index."""
        return HFCache([(key.selected(rows), value.selected(rows)) for key, value in self.layers])

    def repeat(self, n: int) -> HFCache:
        """Each row n times, neighbours together."""
        if not self.layers:
            return HFCache()
        key = self.layers[0][0].tensor
        return self.select(torch.arange(key.shape[0], device=key.device).repeat_interleave(n))

    def clone(self) -> HFCache:
        """A cache that can be continued without changing this one; it shares the tensors until then."""
        return HFCache([(_Columns(key.tensor), _Columns(value.tensor)) for key, value in self.layers])

    def join(self, others: Sequence[HFCache]) -> HFCache:
        """The rows of this cache, then those of others; shorter ones after zeros, which a mask has to hide."""
        parts = (self, *others)
        longest = max(part.length for part in parts)

        def together(layer: int, which: int) -> _Columns:
            tensors = [part.layers[layer][which].tensor for part in parts]
            return _Columns(torch.cat([nn.functional.pad(x, (0, 0, longest - x.shape[2], 0)) for x in tensors]))

        return HFCache([(together(layer, 0), together(layer, 1)) for layer in range(len(self.layers))])


class _Appending(DynamicLayer):
    """One layer's cache during one forward call.

    `past` is fixed, so a layer that is run again in backward (gradient checkpointing) appends to the same past.
    """

    def __init__(self, past: tuple[_Columns, _Columns] | None) -> None:
        super().__init__()
        self.past = past
        self.columns = past
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Past and new columns together."""
        if self.past is None:
            self.columns = _Columns(key_states), _Columns(value_states)
        else:
            self.columns = self.past[0].appended(key_states), self.past[1].appended(value_states)
        return self.columns[0].tensor, self.columns[1].tensor

    def get_seq_length(self) -> int:
        """Columns before this call."""
        return 0 if self.past is None else self.past[0].tensor.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys a call of `query_length` columns sees, and the offset of the first."""
        return self.get_seq_length() + query_length, 0


class HFBackbone(nn.Module):
    """Any causal LM of transformers as a `Backbone`; build one with `load` or `from_shape`.

    Args:
        model: the causal LM, on its device and in its precision.
        tokenizer: its tokenizer, where it has one.
        gradient_checkpointing: recompute each layer in backward instead of keeping its activations; also works with
            a cache.

    Raises:
        StepwellError: an architecture that cannot be run from embeddings with a cache of keys and values, or whose
            logits are not what `logits` computes.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any = None, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.config: Any = model.config.get_text_config(decoder=True)
        self.width: int = self.config.hidden_size
        self.max_positions: int | None = getattr(self.config, "max_position_embeddings", None)
        if "position_ids" not in inspect.signature(self.base.forward).parameters:
            raise _unsupported(model, "it takes no position ids")
        self.recomputes = gradient_checkpointing
        _fuse_gelu(self.base)
        if gradient_checkpointing:
            _checkpoint_layers(self.base)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        precision: Precision = "fp32",
        device: str = "auto",
        attention: str = "sdpa",
        gradient_checkpointing: bool = False,
        revision: str | None = None,
    ) -> HFBackbone:
        """A model from a folder, from what `stepwell models pull` stored, or from the hub; in evaluation mode.

        Args:
            name: a folder, a pulled name (`smollm2-135m`), or a hub id (`gpt2`).
            precision: of weights and computation.
            device: auto, cpu, cuda, cuda:N or mps.
            attention: implementation in transformers; `eager` for architectures with soft-capped attention.
            gradient_checkpointing: see the class.
            revision: branch, tag or commit on the hub.

        Raises:
            StepwellError: no such folder, no weights, weights only as a pickle, weights that are incomplete or not
                of this architecture, a tokenizer of another vocabulary, a hub that cannot be reached.
        """
        folder = models.locate(name, revision=revision)
        models.check_folder(folder)
        place = pick_device(device)
        with _readable(folder), _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=DTYPES[precision],
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            tokenizer = _load_tokenizer(folder)
        model, found = loaded
        _refuse_gaps(found["missing_keys"], folder)
        backbone = cls(model.to(place), tokenizer, gradient_checkpointing=gradient_checkpointing).eval()
        backbone._check_tokenizer(folder)
        backbone.verify()
        return backbone

    @classmethod
    def from_shape(
        cls,
        shape: Shape,
        *,
        seed: int = 0,
        precision: Precision = "fp32",
        device: str = "auto",
        attention: str = "sdpa",
        gradient_checkpointing: bool = False,
    ) -> HFBackbone:
        """A model from scratch, in evaluation mode; the global random state is left alone.

        Args:
            shape: its shape.
            seed: of the initial weights, drawn on the CPU in fp32, so the same on every device.
            precision: of weights and computation.
            device: as for `load`; `meta` builds no weights, for counting parameters and FLOP.
            attention: implementation in transformers.
            gradient_checkpointing: see the class.
        """
        config = _config(shape)
        place = pick_device(device)
        with torch.random.fork_rng(devices=[]), torch.device("meta" if place.type == "meta" else "cpu"):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
        model = model.to(device=place, dtype=DTYPES[precision])
        return cls(model, gradient_checkpointing=gradient_checkpointing).eval()

    def save(self, folder: Path) -> None:
        """Weights as safetensors, configuration, and the tokenizer where there is one; whole or not at all.

        Raises:
            StepwellError: the folder cannot be written.
        """
        with models.whole_folder(folder) as new, _quiet():
            self.model.save_pretrained(new)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(new)

    def add_tokens(self, names: Sequence[str], *, copy_from: int | str | None = None) -> tuple[int, ...]:
        """Add tokens whose rows, in the embedding and in an untied head, start as copies of an existing token's.

        A name that the tokenizer already knows keeps its id and its row. Without a tokenizer every name gets a new
        row at the end.

        Args:
            names: the tokens' texts, such as `<|latent|>`.
            copy_from: id or text of the token to copy; None = `copy_source()`.

        Returns:
            The ids, in the order of the names.

        Raises:
            StepwellError: no such token to copy from.
        """
        source = self._token(copy_from)
        old = self.vocabulary
        if self.tokenizer is None:
            ids, new = tuple(range(old, old + len(names))), tuple(range(old, old + len(names)))
        else:
            known = self.tokenizer.get_vocab()
            self.tokenizer.add_tokens(list(names), special_tokens=True)
            ids = tuple(self.tokenizer.convert_tokens_to_ids(list(names)))
            new = tuple(i for name, i in zip(names, ids, strict=True) if name not in known)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            if (rows := max(ids, default=0) + 1) > old:
                self.model.resize_token_embeddings(rows, mean_resizing=False)
            for module in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
                for tensor in (module.weight, getattr(module, "bias", None)):
                    if tensor is not None:
                        tensor[list(new)] = tensor[source].clone()
        return ids

    def copy_source(self) -> int:
        """The token that new tokens copy unless told otherwise.

        `<<` where it is one token (GPT-2), else the end token, else token 0.
        """
        if self.tokenizer is not None:
            ids = self.tokenizer.encode("<<", add_special_tokens=False)
            if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id:
                return ids[0]
            if self.tokenizer.eos_token_id is not None:
                return self.tokenizer.eos_token_id
        return 0

    def _token(self, token: int | str | None) -> int:
        if token is None:
            return self.copy_source()
        if isinstance(token, str):
            known = {} if self.tokenizer is None else self.tokenizer.get_vocab()
            number = known.get(token)
        else:
            number = token
        if number is None or not 0 <= number < self.vocabulary:
            raise StepwellError(
                f"there is no token {token!r} to copy from", "name one token of the tokenizer, or an id below its size"
            )
        return number

    @property
    def base(self) -> Any:
        """The model without its head."""
        return self.model.base_model

    @property
    def vocabulary(self) -> int:
        """V, rows of the embedding."""
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def embed(self, ids: Ids) -> Embeds:
        """Token embeddings, without positions."""
        return self.model.get_input_embeddings()(ids)

    def forward(
        self, embeds: Embeds, *, positions: Positions, mask: Mask, cache: HFCache | None = None, skip: int = 0
    ) -> Hidden:
        """Causal attention over the cached columns and these.

        Args:
            embeds: (B, T, D).
            positions: (B, T), counted from 0 at a row's first real column; at padding they are not read.
            mask: (B, S), S = cached + T; True where the key is real.
            cache: appended to, where given.
            skip: leading columns whose hidden state is not wanted.

        Returns:
            (B, T - skip, D), after the final norm; finite but meaningless where a column is padding.

        Raises:
            StepwellError: shapes that do not fit together, or positions beyond what the model knows.
        """
        past = 0 if cache is None else cache.length
        self._check(embeds, positions, mask, past, skip)
        view = None
        if cache is not None:
            layers = cache.layers or [None] * self.config.num_hidden_layers
            view = TransformersCache(layers=[_Appending(layer) for layer in layers])
        output = self.base(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions.clamp(min=0),
            past_key_values=view,
            use_cache=view is not None,
        )
        if cache is not None and view is not None:
            cache.layers = tuple(layer.columns for layer in view.layers)  # pyright: ignore[reportAttributeAccessIssue]
        return output.last_hidden_state[:, skip:]

    def logits(self, hidden: States) -> Logits:
        """Vocabulary logits (..., V) of hidden states (..., D), with the scaling and soft cap of the architecture."""
        logits = self.model.get_output_embeddings()(hidden)
        for name in ("logit_scale", "lm_head_multiplier"):  # Cohere; Falcon-H1
            logits = logits * factor if (factor := getattr(self.config, name, None)) is not None else logits
        if (divisor := getattr(self.config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / divisor
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits

    def new_cache(self) -> HFCache:
        """An empty cache."""
        return HFCache()

    def parameter_count(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flop_per_token(self, length: int, *, logits: bool = False) -> int:
        """Forward FLOP of one column that attends to `length` keys.

        2 a multiply-add; matrix products only (norms, activations, embeddings and softmax left out), and every weight
        once, which overcounts mixtures of experts.

        Args:
            length: keys in the attention's products (causal masking saves nothing in most kernels).
            logits: whether the column also goes through the head.
        """
        config = self.config
        heads = config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or self.width // heads
        products = sum(m.weight.numel() for m in self.base.modules() if isinstance(m, nn.Linear | Conv1D))
        attention = 2 * config.num_hidden_layers * heads * head_width * length
        return 2 * (products + attention + (self.width * self.vocabulary if logits else 0))

    def verify(self) -> None:
        """Check on three columns that cached forward + `logits` give what the model itself gives.

        Raises:
            StepwellError: they do not, so this architecture cannot be a backbone.
        """
        was_training = self.training
        self.eval()
        ids = torch.arange(3, device=self.device)[None] % self.vocabulary
        positions, mask = torch.arange(3, device=self.device)[None], torch.ones_like(ids, dtype=torch.bool)
        try:
            with torch.no_grad():
                embeds, cache = self.embed(ids), self.new_cache()
                wanted = self.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
                self(embeds[:, :2], positions=positions[:, :2], mask=mask[:, :2], cache=cache)
                hidden = self(embeds[:, 2:], positions=positions[:, 2:], mask=mask, cache=cache)
                error = (self.logits(hidden)[0, 0].float() - wanted[0, 2].float()).abs().max()
        except (AttributeError, IndexError, TypeError, ValueError, NotImplementedError) as error:
            raise _unsupported(self.model, f"running it from a cache failed ({error})") from error
        finally:
            self.train(was_training)
        tolerance = 0.1 if wanted.dtype == torch.bfloat16 else 1e-3
        if not error <= tolerance * wanted[0, 2].float().abs().max():
            raise _unsupported(self.model, f"its logits from a cache differ by {float(error):.2g}")

    def _check_tokenizer(self, folder: Path) -> None:
        if self.tokenizer is None:
            return
        largest = max(self.tokenizer.get_vocab().values(), default=0)
        if largest >= self.vocabulary:
            raise StepwellError(
                f"the tokenizer is of another vocabulary: its largest id is {largest}, "
                f"and the model has {self.vocabulary} embeddings",
                "put the tokenizer that the model was trained with into the folder",
                path=folder,
            )

    def _check(self, embeds: Tensor, positions: Tensor, mask: Tensor, past: int, skip: int) -> None:
        batch, columns, width = embeds.shape
        wanted = {
            "embeds": (batch, columns, self.width),
            "positions": (batch, columns),
            "mask": (batch, past + columns),
        }
        found = {"embeds": (batch, columns, width), "positions": tuple(positions.shape), "mask": tuple(mask.shape)}
        for name, shape in wanted.items():
            if found[name] != shape:
                raise StepwellError(
                    f"{name} have the shape {found[name]}, not {shape} ({past} columns are cached)",
                    "positions are (B, T); the mask covers the cached columns and these: (B, cached + T)",
                )
        if not 0 <= skip <= columns:
            raise StepwellError(f"skip is {skip} of {columns} columns", "skip between none and all of them")
        # Reading positions waits for the device, so only where columns (padding included) exceed the bound.
        if self.max_positions is not None and past + columns > self.max_positions:
            last = int(positions.max())
            if last >= self.max_positions:
                raise StepwellError(
                    f"position {last} is asked for, but the model knows {self.max_positions} positions",
                    "shorten the input, or choose a model with a longer context",
                )


class SentenceEncoder:
    """A model without a head, that makes one vector of a text; build one with `load`.

    Attributes:
        most_tokens: of a text that are read, special ones among them; None = as many as it has.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        most = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length]
        # A tokenizer without a length of its own says 1e30.
        self.most_tokens: int | None = min((n for n in most if n is not None and n < 10**9), default=None)

    @classmethod
    def load(cls, name: str | Path, *, device: str = "auto") -> SentenceEncoder:
        """An encoder in fp32, by folder, pulled name or hub id; in evaluation mode.

        Raises:
            StepwellError: as `HFBackbone.load`; no tokenizer; an encoder-decoder; an encoder whose folder says that
                its vectors are pooled otherwise than by the mean.
        """
        folder = models.locate(name)
        models.check_folder(folder)
        place = pick_device(device)
        with _readable(folder), _quiet(reports=True):
            loaded: Any = AutoModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
            tokenizer = _load_tokenizer(folder)
        model, found = loaded
        # A pooler comes after the hidden states: many encoders are published without its weights.
        _refuse_gaps([key for key in found["missing_keys"] if not key.startswith("pooler.")], folder)
        if tokenizer is None or model.config.is_encoder_decoder:
            lack = "there is no tokenizer" if tokenizer is None else f"{type(model).__name__} also has a decoder"
            raise StepwellError(lack, "name a sentence encoder with its tokenizer", path=folder)
        pooling = folder / "1_Pooling" / "config.json"
        if pooling.is_file() and not json.loads(pooling.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens"):
            raise StepwellError(
                "its sentence vectors are not means over tokens", "name an encoder with mean pooling", path=pooling
            )
        return cls(model.to(place).eval(), tokenizer)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Vectors (B, D) of length 1 on the CPU, means of the last hidden states over a text's tokens.

        Returns:
            The vectors, and for each text whether all of it was read.
        """
        whole = [len(ids) for ids in self.tokenizer(list(texts))["input_ids"]]
        rows = self.tokenizer(list(texts), truncation=self.most_tokens is not None, max_length=self.most_tokens)
        rows = [ids or [0] for ids in rows["input_ids"]]
        # Padding by the tokenizer's own token, by which some models tell where positions begin.
        filler, columns = self.tokenizer.pad_token_id or 0, max(map(len, rows), default=0)
        ids = torch.tensor([row + [filler] * (columns - len(row)) for row in rows], device=self.model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (columns - len(row)) for row in rows], device=self.model.device)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors = nn.functional.normalize(mean.double(), dim=-1).cpu()
        return vectors, [n <= (self.most_tokens or n) for n in whole]


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """What transformers raises about a folder, as one error that names it."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise StepwellError(
            f"the model cannot be loaded: {reason[0]}",
            "check that the folder is complete, or pull it again",
            path=folder,
        ) from error


def _refuse_gaps(missing: Iterable[str], folder: Path) -> None:
    if names := sorted(missing):
        raise StepwellError(
            f"the weights lack {len(names)} tensors, first {names[0]}",
            "they are of another model than config.json describes: fetch both from the same source",
            path=folder,
        )


def _unsupported(model: PreTrainedModel, why: str) -> StepwellError:
    return StepwellError(
        f"{type(model).__name__} cannot be used as a backbone: {why}",
        "choose a causal LM with attention in every layer, such as GPT-2, Llama, Qwen2 or GPT-NeoX",
    )


def _fuse_gelu(base: nn.Module) -> None:
    # GPT-2's GELU is written in eight steps there, each of which keeps its own activations for backward. Torch has the
    # same function as one; the configuration, and so what is saved, stays as it is.
    for module in list(base.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def _checkpoint_layers(base: nn.Module) -> None:
    # Not the option of transformers: it drops the cache in training, which would silently cut the past off.
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise StepwellError(
            f"{type(base).__name__} has no layers that can be recomputed", "switch gradient checkpointing off"
        )
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model, without its weights, by folder, pulled name or hub id.

    Raises:
        StepwellError: no such folder, a hub that cannot be reached, or a model without a tokenizer.
    """
    folder = models.locate(name)
    with _readable(folder), _quiet():
        tokenizer = _load_tokenizer(folder)
    if tokenizer is None:
        raise StepwellError("there is no tokenizer", "name a model with its tokenizer", path=folder)
    return tokenizer


def _load_tokenizer(folder: Path) -> Any:
    if not models.has_tokenizer(folder):
        return None
    settings = folder / "tokenizer_config.json"
    declared = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") if settings.is_file() else None
    if declared in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        # AutoTokenizer prefers the class that belongs to the model type, which may add tokens of its own.
        return PreTrainedTokenizerFast.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a folder of safetensors (fp32, so exactly the quantised values) and its tokenizer."""
    with _quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        # The weights are no longer quantised, and transformers refuses to save them while the configuration says so.
        del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def skeleton(folder: Path) -> tuple[Any, Any]:
    """The causal LM that a folder describes, without its weights, and its tokenizer (None where it has none).

    Parameters are on the device `meta`, buffers are real; fp32, in evaluation mode. For work that holds a part of the
    weights at a time.

    Raises:
        StepwellError: an unknown architecture or a broken configuration.
    """
    with _readable(folder), _quiet(), torch.random.fork_rng(devices=[]), _parameters_on_meta():
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tokenizer = _load_tokenizer(folder)
    return model.eval(), tokenizer


def renaming(model: Any) -> Callable[[str], str]:
    """From a weight's name on disk, of whatever version, to what this version of transformers calls it."""
    steps = [step for step in get_model_conversion_mapping(model) if isinstance(step, WeightRenaming)]

    def renamed(name: str) -> str:
        for step in steps:
            name, _ = step.rename_source_key(name)
        return name

    return renamed


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # One that is there already is being tied: it stays the same object.
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


@contextlib.contextmanager
def _quiet(*, reports: bool = False) -> Iterator[None]:
    # Progress bars of transformers would run into the live table; they come back for whoever else uses it. So does its
    # report of keys without a place: for a model that is loaded without its head, there are always some.
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    if reports:
        transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _config(shape: Shape) -> Any:
    heads = shape.key_value_heads or shape.heads
    inner = shape.inner or 4 * shape.width
    common = {
        "vocab_size": shape.vocabulary, "hidden_size": shape.width, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": shape.tied, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    names = {"gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"), "gpt_neox": ("hidden_dropout", "attention_dropout")}
    dropout = dict.fromkeys(names.get(shape.architecture, ("attention_dropout",)), shape.dropout)
    special = {"n_inner" if shape.architecture == "gpt2" else "intermediate_size": inner}
    if shape.architecture in ("llama", "qwen2"):
        special["num_key_value_heads"] = heads
    return AutoConfig.for_model(shape.architecture, **common, **dropout, **special)
