"""How much memory a model needs here, counted from its configuration: no weights are loaded, no network is needed.

Weights, adapter and cache are exact. Activations are counted layer by layer from what the backward pass keeps (the
tests compare with a tiny model's saved tensors); the logits are a measured number of copies. What a driver and an
allocator take beside all that is in `USABLE`. Everything is in bytes until it is shown.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hero_mini.config import WARMUPS, TrainConfig
from hero_mini.embedded import NAME
from hero_mini.errors import HeroError, first_line, nearest
from hero_mini.lora import TARGETS

SIZE = 2  # bytes of a bf16 number
TRAINED = 20  # bytes per adapter weight: bf16 weight and gradient; float32 copy, its gradient and two moments (`lora`)
LOGITS = 32  # bytes per scored token and vocabulary entry while distilling: eight float32 copies at the peak (measured)
SCORED = 0.25  # share of a micro-batch's tokens that are actions, as in mini retail; our rough figure
USABLE = 0.9  # share of a card that is left for tensors; our rough figure
CARDS = (8, 16, 24, 40, 80)  # GB (2**30 bytes)
GB, MB = 2**30, 2**20

# The numbers of each model's config.json that decide a size (huggingface.co, July 2025; SmolLM2: the embedded GGUF)
KNOWN: dict[str, dict[str, int | str]] = {
    NAME: dict(
        model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152,
    ),
    "Qwen/Qwen3-0.6B": dict(
        model_type="qwen3", hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=151936,
    ),
    "Qwen/Qwen3-1.7B": dict(
        model_type="qwen3", hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=151936,
    ),
    "Qwen/Qwen3-4B-Instruct-2507": dict(
        model_type="qwen3", hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=151936,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """Bytes of the parts of a run."""

    weights: int  # of the frozen model, in bf16
    adapter: int  # with its gradient and its optimiser
    cache: int  # keys and values of 1,000 tokens of one rollout
    activations: int  # what the student's pass over one micro-batch keeps for its backward
    checkpointed: int  # the same with gradient checkpointing
    logits: int  # of the micro-batch's scored tokens, teacher and student

    def training(self, *, checkpointing: bool) -> int:
        """All that exists at the peak of a training step."""
        return self.weights + self.adapter + self.logits + (self.checkpointed if checkpointing else self.activations)

    def rollouts(self, card: int, context: int) -> int:
        """How many rollouts of `context` tokens run at once beside weights and adapter on a card of so many bytes.

        The cache grows by doubling, and old and new keys exist together while it does: allow for half of this number.
        """
        left = USABLE * card - self.weights - self.adapter
        return max(0, int(left / (self.cache * context / 1000)))


def read_config(model: str | Path) -> PreTrainedConfig:
    """The configuration of a model in `KNOWN`, of the embedded one, of a folder, or of a hub id (by network).

    raises HeroError: there is none
    """
    name = NAME if str(model) in WARMUPS else str(model)
    if name in KNOWN:
        numbers = dict(KNOWN[name])
        return AutoConfig.for_model(numbers.pop("model_type"), tie_word_embeddings=True, **numbers)
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as problem:  # transformers and the hub each have their own kinds
        meant = nearest(name, [*KNOWN, *WARMUPS])
        raise HeroError(
            f"no configuration for {name!r}{meant} ({first_line(problem)}); give a folder, a hub id, or one of: "
            f"{', '.join(KNOWN)}"
        ) from problem


def memory(
    config: PreTrainedConfig,
    *,
    rank: int = TrainConfig.rank,
    max_tokens: int = TrainConfig.max_tokens,
    scored: float = SCORED,
) -> Memory:
    """The parts for an adapter of this rank and micro-batches of `max_tokens` tokens, a share `scored` of them actions.

    raises HeroError: the model is not built from the layers that our adapters know
    """
    try:
        with torch.device("meta"):  # shapes without memory
            model = AutoModelForCausalLM.from_config(config)
    except Exception as problem:
        raise HeroError(f"a {config.model_type} model cannot be built ({first_line(problem)}): take Qwen3") from problem
    weights = sum(p.numel() for p in model.parameters())
    adapted = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.split(".")[-1] in TARGETS]
    known = {m.weight for m in [*adapted, model.get_input_embeddings(), model.get_output_embeddings()]}
    if not adapted or any(p.dim() > 1 and p not in known for p in model.parameters()):  # fused layers, experts
        raise HeroError(
            f"a {config.model_type} model is not made of the layers that our adapters train: take a dense one, as Qwen3"
        )
    trained = sum(rank * (m.in_features + m.out_features) for m in adapted)
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size(config) * SIZE * 1000
    return Memory(
        weights=weights * SIZE,
        adapter=trained * TRAINED,
        cache=cache,
        activations=activations(config, max_tokens, rank=rank),
        checkpointed=activations(config, max_tokens, rank=rank, checkpointing=True),
        logits=int(max_tokens * scored) * config.vocab_size * LOGITS,
    )


def head_size(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def activations(
    config: PreTrainedConfig, tokens: int, *, rank: int, size: int = SIZE, checkpointing: bool = False
) -> int:
    """Bytes that `tree.forward` keeps for the backward pass of an adapter, for one row of `tokens` tokens.

    The frozen matrices keep no inputs; their adapters do. Keys and values count once per query head: where a mask and
    grouped heads meet, `attention` repeats them on a GPU.
    size: bytes of a number;  checkpointing: of each layer its input, and all of a single layer at a time
    """
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    queries, keys = heads * head_size(config), config.num_key_value_heads * head_size(config)
    layer = size * (
        2 * hidden  # the inputs of attention and MLP, after their norms
        + 4 * queries  # queries, keys, values, and what attention gives
        + 4 * inner  # gate, its silu, up, and their product
        + len(TARGETS) * rank  # what stands between an adapter's two matrices
    )
    layer += 4 * (2 * (hidden + 1) + heads)  # float32: what the norms saw, their scales; attention's log of sums
    if config.model_type == "qwen3":  # norms queries and keys as well
        layer += 4 * (queries + keys + heads + config.num_key_value_heads)
    shared = size * (tokens + 2 * head_size(config))  # mask, cosines and sines
    kept = config.num_hidden_layers * (size * hidden if checkpointing else layer) + (layer if checkpointing else 0)
    return tokens * (kept + shared)


def needs(models: list[str], **settings: float) -> pd.DataFrame:
    """A row per model: what `memory` counts, in GB (adapter and cache in MB).

    settings: as for `memory`
    """
    rows = []
    for name in models:
        found = asdict(memory(read_config(name), **settings))
        row = {f"{part} MB" if part in ("adapter", "cache") else f"{part} GB": value for part, value in found.items()}
        rows.append({"model": name, **{part: v / (MB if part.endswith("MB") else GB) for part, v in row.items()}})
    return pd.DataFrame(rows)


def fits(models: list[str], *, context: int, **settings: float) -> pd.DataFrame:
    """A row per model and card: does a training step fit, and how many rollouts of `context` tokens run at once."""
    rows = []
    for name in models:
        found = memory(read_config(name), **settings)
        for card in CARDS:
            room = USABLE * card * GB
            plain, saving = (found.training(checkpointing=c) <= room for c in (False, True))
            answer = "yes" if plain else "with checkpointing" if saving else "no"
            together = found.rollouts(card * GB, context)
            rows.append({"model": name, "GB": card, "trains": answer, "rollouts": together})
    return pd.DataFrame(rows)
