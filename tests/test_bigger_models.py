"""A model without our warm-up, as a Qwen3: its dialect of ChatML, and the whole way through one update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hero_mini import envs
from hero_mini.attention import register
from hero_mini.config import TrainConfig
from hero_mini.envs import parse_action
from hero_mini.models import Policy, load_policy
from hero_mini.reflect import FORM, interview
from hero_mini.rollout import collect
from hero_mini.teacher import student_tree
from hero_mini.train import train
from hero_mini.tree import logprobs

# what Qwen3's template does with our roles, without tools and thoughts of its own (a paraphrase; it is longer)
QWEN = """{%- for m in messages %}{%- if m.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + m.content \
+ '\\n</tool_response><|im_end|>\\n' }}{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content \
+ '<|im_end|>\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"""
END = "{%- endif %}"
THINKING = "{%- if enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
TALK = [
    {"role": "system", "content": "Serve the user."},
    {"role": "user", "content": "Cancel #W123."},
    {"role": "tool", "content": "Error: order not found"},
]


@pytest.fixture
def qwen(tiny: Policy, tmp_path: Path) -> Path:
    """A folder with a random Qwen3 of 2 layers, its heads wider than hidden_size / heads, as in the real ones."""
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=len(tiny.tokenizer) + 7,  # Qwen pads its vocabulary: ids without a token
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=8192,
        initializer_range=0.2,
        attn_implementation=register(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "qwen")
    tiny.tokenizer.save_pretrained(tmp_path / "qwen")
    return tmp_path / "qwen"


@pytest.mark.parametrize("thinking", [False, True])
def test_our_layout_is_the_templates(tiny: Policy, thinking: bool) -> None:
    tokenizer = type(tiny.tokenizer)(tokenizer_object=tiny.tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    tokenizer.chat_template = QWEN + (THINKING if thinking else "") + END
    policy = Policy(tiny.model, tokenizer, "qwen")
    text = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, enable_thinking=False, tokenize=False)
    ours = [i for m in TALK for i in policy.message(m["role"], m["content"])] + policy.header()
    assert ours == tokenizer.encode(text, add_special_tokens=False)
    assert text.endswith("</think>\n\n") == thinking and "<tool_response>" in text


def test_the_default_model_keeps_its_own_layout(tiny: Policy) -> None:
    """The warm-up was trained on the role tool; nothing of it may change."""
    assert tiny.message("tool", "x") == [1, *tiny.encode("tool\nx"), 2, *tiny.newline]


def test_a_call_in_qwens_tags_is_read() -> None:
    call = '{"name": "get_order_details", "arguments": {"order_id": "#W1"}}'
    assert parse_action(f"<tool_call>\n{call}\n</tool_call>") == parse_action(call)


def test_a_reflector_without_the_warm_up_is_told_the_form(tiny: Policy) -> None:
    tasks = envs.make("retail").tasks("train", 1)
    (rollout,) = collect(tiny, "retail", tasks, seed=0, max_turns=1, max_action_tokens=4)
    knows, told = (
        tiny.tokenizer.decode(next(interview(replace(tiny, warmed_up=warm), rollout, 128))) for warm in (True, False)
    )
    assert FORM not in knows and told.count(FORM) == 1
    assert told.index(FORM) < told.index("Diagnose every turn")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_qwen_goes_all_the_way(qwen: Path, tmp_path: Path, checkpointing: bool) -> None:
    policy = load_policy(qwen, adapter=None, dtype="float32")
    assert not policy.warmed_up and not load_policy(qwen, dtype="float32").warmed_up
    tasks = envs.make("retail").tasks("train", 3)
    rollouts = collect(policy, "retail", tasks, seed=0, max_turns=2, max_action_tokens=8)
    trees = [student_tree(policy, r, [True] * len(r.turns)) for r in rollouts]
    for rollout, scores in zip(rollouts, logprobs(policy, trees), strict=True):
        for turn, plain in zip(rollout.turns, scores.values(), strict=True):
            torch.testing.assert_close(torch.tensor(turn.logprobs), plain, atol=2e-5, rtol=1e-4)
            assert max(turn.token_ids) < len(policy.tokenizer)
    config = TrainConfig(
        arm="oracle_hero", updates=1, tasks=2, max_turns=2, max_action_tokens=8, rank=4, steps=1,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    train(policy, config, tmp_path / "run")
    row = pd.read_csv(tmp_path / "run" / "metrics.csv").iloc[0]
    assert row["loss"] > 0 and row["grad_norm"] > 0
    again = load_policy(qwen, adapter=tmp_path / "run" / "adapter", dtype="float32")
    assert again.name.endswith("/run/adapter") and not again.warmed_up
