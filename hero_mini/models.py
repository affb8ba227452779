"""The policy: a causal language model with its tokenizer, speaking ChatML.

    policy = load_policy()                                       # the embedded SmolLM2-135M with its warm-up in retail
    policy = load_policy("worlds")                               # the same with one in all three worlds
    policy = load_policy("Qwen/Qwen3-4B-Instruct-2507")          # any ChatML model of the hub, or a local folder

Text from outside (users, tools, the model itself) becomes ids through `encode` alone, which never yields a control
token: nothing that is *said* in a conversation can forge a turn of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from hero_mini.attention import register
from hero_mini.config import ADAPTERS, WARMUPS
from hero_mini.embedded import NAME, embedded_model
from hero_mini.errors import HeroError, first_line, nearest
from hero_mini.files import expanded, read_json, weights_digest

START, END = "<|im_start|>", "<|im_end|>"
WARMUP_FILE = "warmup.json"  # in an adapter's folder: how it was warmed up
HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")  # anything else is the path of a folder
TRAINED_ON = "trained_on.json"  # beside an adapter: the digests of the weights that it changes
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


@dataclass(eq=False)
class Policy:
    """A model that acts, and the one place where text becomes token ids."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    warmed_up: bool = True  # has learnt how a diagnosis is written; any other reflector is told
    digests: tuple[str, ...] = ()  # `weights_digest` of model and adapters; empty for the embedded one and from a hub

    def __post_init__(self) -> None:
        missing = [token for token in (START, END) if token not in self.tokenizer.get_added_vocab()]
        if missing:
            tokens = " or ".join(missing)
            raise HeroError(f"{self.name} has no {tokens} token: choose a ChatML model, such as SmolLM2 or Qwen.")

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def context_length(self) -> int:
        """The most tokens that the model reads at once."""
        return self.model.config.max_position_embeddings

    @cached_property
    def eos_id(self) -> int:
        """The end-of-turn token, which the policy samples itself."""
        return self.tokenizer.convert_tokens_to_ids(END)

    @cached_property
    def special_ids(self) -> list[int]:
        """All control tokens but the end of turn; a rollout never samples one."""
        added = self.tokenizer.added_tokens_decoder.items()
        return sorted({i for i, token in added if token.special} - {self.eos_id})

    @cached_property
    def newline(self) -> list[int]:
        """Follows an action's end of turn when the conversation goes on."""
        return self.encode("\n")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; a control token spelt out in it becomes ordinary pieces."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    @cached_property
    def template(self) -> str:
        """The chat template, of which we read only two dialects of ChatML; empty without one."""
        return str(self.tokenizer.chat_template or "")

    def header(self) -> list[int]:
        """Ids of `<|im_start|>assistant\\n`, after which the policy speaks.

        A model that can think aloud (Qwen3) is told not to, in its own way: its thought is over before it begins.
        """
        thought = "<think>\n\n</think>\n\n" if "enable_thinking" in self.template else ""
        return [self.tokenizer.convert_tokens_to_ids(START), *self.encode(f"assistant\n{thought}")]

    def message(self, role: str, text: str) -> list[int]:
        """Ids of `<|im_start|>{role}\\n{text}<|im_end|>\\n`; a tool speaks as the user's `<tool_response>` to Qwen."""
        if role == "tool" and "<tool_response>" in self.template:
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        start = self.tokenizer.convert_tokens_to_ids(START)
        return [start, *self.encode(f"{role}\n{text}"), self.eos_id, *self.newline]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an action: what stands before its end of turn."""
        ids = list(ids)
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def fingerprint(policy: Policy) -> str:
    """Eight hex digits of a model's name and a sample of its weights, every 4099th: two models may share a name."""
    digest = sha256(policy.name.encode())
    for parameter in policy.model.parameters():
        digest.update(parameter.detach().flatten()[::4099].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def load_policy(
    model: str | Path = "default",
    *,
    adapter: str | Path | None = "default",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> Policy:
    """A policy ready to act: weights loaded, adapter merged, in eval mode.

    model: one of `config.WARMUPS` (SmolLM2-135M-Instruct with that warm-up), a hub id, or a folder
    adapter: "default" (the embedded model's warm-up; nothing for others), a peft folder or hub id, None. One that was
        trained on other adapters brings them along, see `merged_into`
    device: "auto" (CUDA, else MPS, else CPU) or torch's name for one;  dtype: "auto", "bfloat16", "float32", "float16"
    raises HeroError: in one sentence, what is wrong and the remedy
    """
    target, kind = _device(device), _dtype(dtype, _device(device))
    warmup = WARMUPS.get(str(model))
    adapters = []  # in the order in which they are merged
    if adapter is not None and (warmup or str(adapter) != "default"):
        last = _adapter(ADAPTERS / warmup if warmup and str(adapter) == "default" else adapter)
        before = merged_into(str(last[1].base_model_name_or_path or ""))
        adapters = [*(_adapter(one, f", on which {last[0]} was trained") for one in before), last]

    name = NAME if warmup else str(model)
    for place in (name, *(where for where, _ in adapters if not _shipped(where))):
        check_place(place)
    # a merge is done in float32 and rounded once
    network, tokenizer = _load(embedded_model() if warmup else model, torch.float32 if adapters else kind)
    digests = ["" if warmup else weights_digest(expanded(model))]
    for where, config in adapters:
        check_trained_on(where, config, digests)
        network, name = _merge(network, name, where, config)
        digests.append(weights_digest(where))
    for parameter in network.parameters():  # not Module.to: the rotary frequencies stay float32
        parameter.data = parameter.data.to(kind)
    network.config.dtype = kind
    network.name_or_path = name  # peft writes it into adapters trained on this policy
    warmed_up = any(_shipped(where) or (Path(where) / WARMUP_FILE).is_file() for where, _ in adapters)
    return Policy(network.to(target).eval(), tokenizer, name, warmed_up, tuple(digests))


def check_place(place: str) -> None:
    """raises HeroError: a model or an adapter that lies there could not be told from a model with an adapter"""
    if "+" in place:
        raise HeroError(f"{place} has a + in its name, which stands between a model and its adapters: rename it")


def find(source: str | Path) -> tuple[Path, bool]:
    """A model's folder, and whether it is one and no hub id. raises HeroError: it can be neither"""
    if not isinstance(source, str | Path):
        raise HeroError(f"the model is {source!r}: give 'default', a hub id, or a folder")
    folder = expanded(source)
    if len(folder.parts) == 1 and not folder.exists() and (meant := nearest(folder.name, WARMUPS)):  # the hub is slow
        raise HeroError(f"there is no model {folder.name!r}{meant}; the embedded ones are {', '.join(WARMUPS)}")
    local = isinstance(source, Path) or folder.exists() or not HUB_ID.fullmatch(source)
    if local and not (folder / "config.json").is_file():
        state = "holds no config.json" if folder.is_dir() else "does not exist"
        raise HeroError(f"{folder} is not a model, it {state}: give a folder written by save_pretrained, or a hub id.")
    return folder, local


def _load(source: str | Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights and tokenizer from a folder or the hub, or one sentence saying why not."""
    logging.disable_progress_bar()
    folder, local = find(source)
    place = str(folder) if local else str(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        network, report = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, attn_implementation=register(), output_loading_info=True
        )
    except Exception as error:  # transformers, safetensors, tokenizers and the hub each have their own kinds
        reason = first_line(error)
        if local:
            raise HeroError(f"The model in {folder} cannot be loaded ({reason}): copy or download it again.") from error
        raise HeroError(
            f"{place!r} is no folder here and could not be loaded from the hub ({reason}): "
            "check the spelling and the network, or use the embedded model 'default'."
        ) from error
    if report["missing_keys"]:  # transformers would go on with random numbers there
        some = ", ".join(sorted(report["missing_keys"])[:2])
        raise HeroError(f"The weights of {place} are incomplete ({some}, … missing): copy or download the model again.")
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        raise HeroError(f"The weights of {place} are not all finite: copy or download the model again.")
    known = network.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise HeroError(
            f"The tokenizer of {place} has {len(tokenizer)} tokens, its model {known}: call "
            "model.resize_token_embeddings(len(tokenizer)) and save both again."
        )
    if other := other_parts(network.config):
        kind = network.config.model_type
        raise HeroError(f"{place} is a {kind} model with {other}, not known here: take one as SmolLM2 or Qwen.")
    return network, tokenizer


def other_parts(config: PreTrainedConfig) -> str:
    """What a model does that our passes do not (see `attention`, `cache`, `tree`), in words; empty if nothing.

    >>> from transformers import CohereConfig, LlamaConfig, MistralConfig
    >>> [other_parts(config) for config in (LlamaConfig(), MistralConfig(sliding_window=4096), CohereConfig())]
    ['', 'a sliding window', 'scaled logits']
    """
    if config.get_text_config() is not config:
        return "parts that are no text"
    if not hasattr(config, "num_key_value_heads"):
        return "another attention"
    if others := set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return f"{' and '.join(sorted(others))} layers"
    if getattr(config, "sliding_window", None):
        return "a sliding window"
    if any(getattr(config, name, None) not in (None, 1.0) for name in ("logit_scale", "logits_scaling")):
        return "scaled logits"
    capped = any(getattr(config, f"{where}_logit_softcapping", None) for where in ("attn", "final"))
    return "capped scores" if capped else ""


def merged_into(name: str) -> list[str | Path]:
    """Where the adapters lie that a policy's name tells of, in the order in which they were merged.

    The name is the model's with a "+" before each: of a warm-up of this package its name, else its place.

    >>> merged_into("SmolLM2-135M-Instruct"), merged_into("SmolLM2-135M-Instruct+warmup")[0].name
    ([], 'warmup')
    """
    return [folder if (folder := ADAPTERS / one).is_dir() else one for one in name.split("+")[1:]]


def _shipped(where: str) -> bool:
    return Path(where).parent == ADAPTERS


def _adapter(source: str | Path, why: str = "") -> tuple[str, PeftConfig]:
    """Where an adapter lies, a folder's whole path or its hub id, and its configuration.

    why: what it is needed for, where nobody has asked for it
    """
    folder = expanded(source)
    if folder.parent == ADAPTERS and not folder.is_dir():
        raise HeroError(f"The warm-up is not here: copy {folder} from the repository, or pass adapter=None.")
    place = str(folder.resolve() if folder.exists() else source)
    try:
        return place, PeftConfig.from_pretrained(place)
    except Exception as error:
        raise HeroError(
            f"No adapter at {source}{why} ({first_line(error)}): give a folder that holds adapter_config.json, a hub "
            "id, or None."
        ) from error


def _merge(network: PreTrainedModel, name: str, where: str, config: PeftConfig) -> tuple[PreTrainedModel, str]:
    """The network with the adapter's change added to its weights, and the name of the result."""
    check_made_for(config, name, where)
    try:
        peft_model = PeftModel(network, config)
        fill_adapter(peft_model, where)
    except Exception as error:
        raise HeroError(
            f"The adapter {where} does not fit {name}, or is damaged ({first_line(error)}): copy or train it again, "
            "load it with the model that it was made for, or pass adapter=None."
        ) from error
    return peft_model.merge_and_unload(), f"{name}+{Path(where).name if _shipped(where) else where}"


def check_made_for(config: PeftConfig, name: str, where: str) -> None:
    """raises HeroError: the adapter was trained on another model, or on this one with other adapters merged into it"""
    base = str(config.base_model_name_or_path or "an unnamed model")
    (made_for, *before), (model, *merged) = base.split("+"), name.split("+")
    if Path(made_for).name != Path(model).name or before != merged:
        raise HeroError(
            f"The adapter {where} was made for {base}, not for {name}: load it with that model, or pass adapter=None; "
            "if both are the same, correct base_model_name_or_path in adapter_config.json there."
        )


def check_trained_on(where: str, config: PeftConfig, digests: Sequence[str]) -> None:
    """raises HeroError: the weights that an adapter was trained on are others now; `digests`: theirs, in order"""
    file = Path(where) / TRAINED_ON
    before = read_json(file).get("digests", ()) if file.is_file() else ()
    if any(then != now for then, now in zip(before, digests, strict=False) if then and now):
        raise HeroError(
            f"The adapter {where} was trained on {config.base_model_name_or_path}, of which some weights are others by "
            "now: bring them back, or train it again."
        )


def fill_adapter(peft_model: PeftModel, where: str) -> None:
    """Copy all weights of a saved adapter into the active one; the caller says what follows from a failure.

    raises ValueError: weights are missing, not finite, or without a place; and whatever peft and safetensors raise
    """
    if Path(where).is_dir() and not any(Path(where).glob("adapter_model.*")):  # peft would ask the hub
        raise ValueError("adapter_model.safetensors is not there")
    weights = load_peft_weights(where, device="cpu")
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise ValueError("some of its weights are not finite")
    report = set_peft_model_state_dict(peft_model, weights, peft_model.active_adapter)
    kind = peft_model.peft_config[peft_model.active_adapter].peft_type.value.lower()
    unfilled = [key for key in report.missing_keys if kind in key]
    if report.unexpected_keys or unfilled:
        raise ValueError(f"{len(unfilled)} of its weights are missing, {len(report.unexpected_keys)} unknown")


def _device(device: str | torch.device) -> torch.device:
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    wanted = str(device)
    if wanted == "auto":
        wanted = next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
    kind = wanted.split(":")[0]
    if kind not in here:
        raise HeroError(f"Unknown device {wanted!r}{nearest(kind, [*here, 'auto'])}: choose auto, cpu, cuda or mps.")
    if not here[kind]:
        raise HeroError(f"The device {wanted!r} is not available on this machine: choose device='auto' or 'cpu'.")
    try:
        torch.empty(0, device=wanted)  # cuda:7, cpu:x
    except RuntimeError as error:
        raise HeroError(f"The device {wanted!r} cannot be used ({first_line(error)}): try device='auto'.") from error
    return torch.device(wanted)


def usual_dtype() -> torch.dtype:
    """The number format in which models compute here, unless told otherwise: sampled episodes depend on it."""
    return _dtype("auto", _device("auto"))


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """bf16 where it is the faster one: on CUDA, and on processors that multiply it. Measured on an update of training:
    three times as fast with AVX-512 BF16, and half slower than float32 with AVX-512 alone."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        cpu: dict[str, Any] = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        native = device.type == "cuda" or cpu.get("amx_bf16") or cpu.get("avx512_bf16")
        return torch.bfloat16 if native else torch.float32
    if dtype not in DTYPES:
        known = ["auto", *DTYPES]
        raise HeroError(f"Unknown dtype {dtype!r}{nearest(dtype, known)}: choose {', '.join(known)}.")
    return DTYPES[dtype]
