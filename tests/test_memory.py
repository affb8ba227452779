"""The memory table: against sums by hand, and against the bytes of tiny models."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hero_mini.attention import register
from hero_mini.cache import Cache
from hero_mini.cli import main
from hero_mini.config import TrainConfig
from hero_mini.distil import Lesson, _descend
from hero_mini.errors import HeroError
from hero_mini.lora import AdapterOptimizer, add_student, checkpointing
from hero_mini.memory import GB, KNOWN, LOGITS, activations, fits, memory, needs, read_config
from hero_mini.models import Policy
from hero_mini.tree import Tree, forward


def config(kind: str, **changes: int) -> PreTrainedConfig:
    sizes = dict(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, head_dim=16,
    )  # fmt: skip
    return AutoConfig.for_model(kind, tie_word_embeddings=True, attn_implementation=register(), **sizes | changes)


def policy(tiny: Policy, settings: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> Policy:
    model = AutoModelForCausalLM.from_config(settings).to(dtype).eval()
    return replace(tiny, model=model)


# --- by hand ---------------------------------------------------------------------------------------------------------
def test_qwen3_4b_by_hand() -> None:
    found = memory(read_config("Qwen/Qwen3-4B-Instruct-2507"), rank=16)
    attention = 2560 * 4096 + 2 * 2560 * 1024 + 4096 * 2560  # q, k and v, o: 32 and 8 heads of 128
    layer = attention + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128  # MLP, two norms, norms of queries and keys
    assert found.weights == 2 * (151936 * 2560 + 36 * layer + 2560) == 2 * 4_022_468_096
    ends = (2560 + 4096) + 2 * (2560 + 1024) + (4096 + 2560) + 3 * (2560 + 9728)
    assert found.adapter == 36 * 16 * ends * (2 + 2 + 4 + 4 + 4 + 4)
    assert found.cache == 1000 * 36 * 2 * 8 * 128 * 2  # keys and values in bf16


@pytest.mark.parametrize(
    "name, parameters", [("default", 134_515_008), ("Qwen/Qwen3-0.6B", 596_049_920), ("Qwen/Qwen3-1.7B", 1_720_574_976)]
)
def test_parameters_as_published(name: str, parameters: int) -> None:
    assert memory(read_config(name)).weights == 2 * parameters


def test_what_fits_by_hand() -> None:
    model = "Qwen/Qwen3-4B-Instruct-2507"
    found, table = memory(read_config(model)), fits([model], context=8000).set_index("GB")
    assert found.training(checkpointing=True) < 0.9 * 16 * GB < 0.9 * 24 * GB < found.training(checkpointing=False)
    saving = "with checkpointing"
    assert table["trains"].to_dict() == {8: "no", 16: saving, 24: saving, 40: "yes", 80: "yes"}
    assert table.loc[24, "rollouts"] == (0.9 * 24 * GB - found.weights - found.adapter) // (8 * found.cache)
    assert table["rollouts"].is_monotonic_increasing and table.loc[8, "rollouts"] == 0


# --- against real bytes ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_weights_adapter_and_cache_of_a_tiny_model(tiny: Policy, kind: str) -> None:
    settings = config(kind, num_key_value_heads=2)
    agent = policy(tiny, settings)
    found = memory(settings, rank=4)
    assert found.weights == sum(p.nbytes for p in agent.model.parameters())

    student = add_student(agent, rank=4, seed=0)
    optimizer = AdapterOptimizer(student)
    forward(student, [Tree.chain([([1, 2], False), ([3], True)])]).logprobs.sum().backward()
    trained = [*optimizer.weights.values(), *(p.grad for p in optimizer.weights.values())]
    optimizer.step(1e-3)
    trained += [*optimizer.masters.values(), *(m.grad for m in optimizer.masters.values())]
    trained += [moment for s in optimizer.adam.state.values() for moment in s.values() if moment.ndim]
    assert found.adapter == sum(t.nbytes for t in trained)

    cache = Cache(agent.model, rows=3)
    slots = cache.keys.shape[3]
    assert cache.keys.nbytes + cache.values.nbytes == found.cache * 3 * slots / 1000


def kept(student: Policy, tokens: int, *, saving: bool) -> int:
    """Bytes of the tensors that a pass over one row saves for its backward, the model's own weights left out."""
    own = {p.untyped_storage().data_ptr() for p in student.model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), checkpointing(student, saving):
        forward(student, [Tree.chain([(range(tokens), False)])])
    return sum(t.untyped_storage().nbytes() for place, t in found.items() if place not in own)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_of_a_tiny_model(tiny: Policy, kind: str, dtype: torch.dtype) -> None:
    settings = config(kind)
    student = add_student(policy(tiny, settings, dtype), rank=4, seed=0)
    AdapterOptimizer(student)
    assert activations(settings, 200, rank=4, size=dtype.itemsize) == kept(student, 200, saving=False)
    inputs = 200 * settings.num_hidden_layers * settings.hidden_size * dtype.itemsize
    assert kept(student, 200, saving=True) == inputs + 200 * 4 * (settings.hidden_size + 1)  # and the last norm
    one_layer = activations(config(kind, num_hidden_layers=1), 200, rank=4, size=dtype.itemsize)
    saved = activations(settings, 200, rank=4, size=dtype.itemsize, checkpointing=True)
    assert saved == inputs + one_layer


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive at once since it began."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (place := tensor.untyped_storage()._cdata) not in self.known:
                size = tensor.untyped_storage().nbytes()
                self.known.add(place)
                self.alive += size
                self.peak = max(self.peak, self.alive)
                weakref.finalize(tensor.untyped_storage(), self._freed, place, size)
        return out

    def _freed(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.alive -= size


def test_logits_of_a_tiny_model_with_a_large_vocabulary(tiny: Policy) -> None:
    vocabulary, n = 20_000, 50
    agent = policy(tiny, config("qwen3", hidden_size=8, num_hidden_layers=1, vocab_size=vocabulary))
    student = add_student(agent, rank=4, seed=0)
    AdapterOptimizer(student)
    action = tuple(range(n))
    own = Tree.chain([(range(20), False), (action, True)])
    told = Tree.chain([(range(30), False), (action, True)])
    rollout = SimpleNamespace(turns=[SimpleNamespace(token_ids=action)])
    result = dict.fromkeys(("loss", "kl_teacher", "tokens_teaching", "tokens_training"), 0.0)
    with Peak() as measured:
        _descend(student, [Lesson(rollout, own, told, frozenset([1]), 0.0)], TrainConfig(), result)
    assert measured.peak == pytest.approx(LOGITS * n * vocabulary, rel=0.1)


# --- where configurations come from ----------------------------------------------------------------------------------
def test_a_folder_is_read(tmp_path: Path) -> None:
    settings = config("qwen3")
    settings.save_pretrained(tmp_path)
    assert memory(read_config(tmp_path)) == memory(settings)
    (row,) = needs([str(tmp_path)]).to_dict("records")
    assert row["weights GB"] * GB == memory(settings).weights


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(HeroError, match="no configuration for.*give a folder, a hub id"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(HeroError, match="no configuration for"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("gpt2", "not made of"),
        ("phi3", "not made of"),
        ("mixtral", "not made of"),
        ("qwen2_moe", "not made of"),
        ("t5", "cannot be built"),
    ],
)
def test_a_model_of_other_layers_is_refused(kind: str, word: str) -> None:
    """Fused layers and experts would be counted in part, and the numbers called exact."""
    with pytest.raises(HeroError, match=word):
        memory(AutoConfig.for_model(kind))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in KNOWN)
    assert main(["memory", "--model", "default", "--max-tokens", "512"]) == 0
    few = capsys.readouterr().out
    assert "Qwen" not in few
    assert main(["memory", "--model", "default", "--max-tokens", "512", "--scored", "0.9"]) == 0
    assert capsys.readouterr().out != few, "more logits"
    with pytest.raises(SystemExit):
        main(["memory", "--scored", "90"])
    assert "'90' is no share above 0, at most 1" in capsys.readouterr().err
