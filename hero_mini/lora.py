"""The student as a LoRA adapter on the agent's frozen weights, and its optimiser.

One set of weights plays every role: adapter on is the student, adapter off is the frozen teacher, and a second
adapter that follows the first slowly is the EMA teacher (Tarvainen and Valpola 2017).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from hero_mini.config import CHOICES
from hero_mini.errors import HeroError, check_known, first_line
from hero_mini.models import Policy, check_made_for, fill_adapter
from hero_mini.parallel import add_up

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STUDENT_ADAPTER, EMA_ADAPTER = "default", "ema"
MAX_GRAD_NORM = 1.0  # a longer gradient is shortened to it


def add_student(policy: Policy, *, rank: int, seed: int, ema: bool = False) -> Policy:
    """A policy with a fresh adapter that changes nothing yet (B = 0); its weights are the only trainable ones.

    The policy passed in stays as it is and shares its frozen weights with the student.
    rank: of every adapted matrix; alpha is twice the rank (our choice)
    raises HeroError: the policy is a student itself, its model has none of the layers to adapt, or the rank is above
        its width
    """
    if isinstance(policy.model, PeftModel):
        raise HeroError(f"{policy.name} is a student itself; load what it learnt with load_policy(adapter=...) first")
    config = policy.model.config
    if not any(name.split(".")[-1] in TARGETS for name, _ in policy.model.named_modules()):
        raise HeroError(f"a {config.model_type} model has no layer that adapters train here: take one as Qwen3")
    if rank > config.hidden_size:
        raise HeroError(f"rank is {rank}, but {policy.name} is only {config.hidden_size} wide; set it lower")
    adapter = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, bias="none")
    base = copy.deepcopy(policy.model, {id(p): p for p in policy.model.parameters()})  # peft rebuilds its modules
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # peft draws A from the global generator
        model = get_peft_model(base, adapter, adapter_name=STUDENT_ADAPTER, autocast_adapter_dtype=False)
        if ema:
            model.add_adapter(EMA_ADAPTER, adapter, autocast_adapter_dtype=False)
    model.set_adapter(STUDENT_ADAPTER)
    model.eval()  # no dropout anywhere: student and teacher differ in weights and context alone
    return replace(policy, model=model)


def student_weights(model: PeftModel) -> dict[str, Tensor]:
    """The trainable tensors of the student by name, in a fixed order."""
    return {name: p for name, p in model.named_parameters() if f".{STUDENT_ADAPTER}." in name}


def load_student(student: Policy, folder: str | Path) -> None:
    """Copy a saved adapter into the student.

    raises HeroError: it cannot be read, or was made for another model or rank
    """
    try:
        check_made_for(PeftConfig.from_pretrained(str(folder)), student.name, str(folder))
        fill_adapter(student.model, str(folder))
    except HeroError:
        raise
    except Exception as error:  # safetensors, peft and torch each have their own kinds
        reason = first_line(error)
        raise HeroError(f"Training cannot go on from {folder} ({reason}): check the folder and the rank.") from error


@contextmanager
def as_teacher(policy: Policy, teacher: str) -> Iterator[Policy]:
    """The policy in the teacher's role: "frozen" (adapter off), "ema", or "live" (the student itself).

    raises HeroError: another name
    """
    check_known("teacher", teacher, CHOICES["teacher"])
    if teacher == "frozen":
        with policy.model.disable_adapter():
            yield policy
    elif teacher == "ema":
        policy.model.set_adapter(EMA_ADAPTER)
        try:
            yield policy
        finally:
            policy.model.set_adapter(STUDENT_ADAPTER)
    else:
        yield policy


@contextmanager
def checkpointing(policy: Policy, wanted: bool) -> Iterator[None]:
    """For a pass with gradients, if `wanted`: each layer keeps its input alone and is computed again in the backward.

    transformers does so in a layer in training mode; the modules inside stay in evaluation mode, without dropout.
    """
    layers = [m for m in policy.model.modules() if wanted and isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False


class AdapterOptimizer:
    """AdamW on float32 copies of the adapter: a bf16 weight would swallow steps below its last digit."""

    def __init__(self, policy: Policy):
        self.weights = student_weights(policy.model)
        for p in self.weights.values():
            p.requires_grad_(True)
        self.masters = {name: p.detach().float().clone() for name, p in self.weights.items()}
        self.adam = torch.optim.AdamW(self.masters.values(), betas=(0.9, 0.99), weight_decay=0.0)

    def step(self, lr: float) -> float:
        """Apply the gradients that all processes have gathered, and clear them. Returns their norm before clipping.

        raises HeroError: it is not finite; the weights stay as they were
        """
        for name, p in self.weights.items():  # a process without a micro-batch has no gradients
            self.masters[name].grad = torch.zeros_like(self.masters[name]) if p.grad is None else p.grad.float()
            p.grad = None
        add_up([master.grad for master in self.masters.values()])
        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), MAX_GRAD_NORM)
        if not torch.isfinite(norm):  # before it reaches the weights, and with them the next checkpoint
            raise HeroError(f"the gradient is {float(norm)}: set a lower lr, in a new folder, or dtype to float32")
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self._write_back()
        return float(norm)

    def _write_back(self) -> None:
        with torch.no_grad():
            for name, p in self.weights.items():
                p.copy_(self.masters[name])

    def state(self) -> dict:
        return {"masters": self.masters, "adam": self.adam.state_dict()}

    def load_state(self, state: dict) -> None:
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state["masters"][name])
        self.adam.load_state_dict(state["adam"])
        self._write_back()


class Ema:
    """The EMA adapter: a slow average of the student, in float32 for the same reason."""

    def __init__(self, policy: Policy, *, decay: float):
        students = student_weights(policy.model)
        every = dict(policy.model.named_parameters())
        self.weights = {name: every[name.replace(f".{STUDENT_ADAPTER}.", f".{EMA_ADAPTER}.")] for name in students}
        self.averages = {name: p.detach().float().clone() for name, p in students.items()}
        self.decay = decay
        self._write_back()

    @torch.no_grad()
    def follow(self, optimizer: AdapterOptimizer) -> None:
        """average <- decay * average + (1 - decay) * student."""
        for name, average in self.averages.items():
            average.lerp_(optimizer.masters[name], 1.0 - self.decay)
        self._write_back()

    def _write_back(self) -> None:
        with torch.no_grad():
            for name, p in self.weights.items():
                p.copy_(self.averages[name])

    def state(self) -> dict:
        return {"averages": self.averages}

    def load_state(self, state: dict) -> None:
        for name, average in self.averages.items():
            average.copy_(state["averages"][name])
        self._write_back()
