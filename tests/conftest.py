"""Fixtures. Everything here is built offline in a moment; tests with the real weights carry the mark `real`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hero_mini.attention import register
from hero_mini.models import Policy

TEXT = [
    "You are a customer service agent. Authenticate the user first, then act.",
    'get_order_details(order_id="#W123") find_user_id_by_email(email="a.b@example.com")',
    "Error: order not found. The user says yes. assistant user tool system transfer done",
]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 400 pieces with ChatML's control tokens first, as in SmolLM2."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXT, BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=special[1], eos_token=special[2], pad_token=special[2], unk_token=special[0]
    )


@pytest.fixture
def tiny(tiny_tokenizer: PreTrainedTokenizerFast) -> Policy:
    """A random Llama: 2 layers, width 32, 4 query heads on 2 key/value heads, float32; the same weights every time."""
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        attn_implementation=register(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    model.name_or_path = "tiny"
    return Policy(model, tiny_tokenizer, "tiny")


@pytest.fixture
def folder(tiny: Policy, tmp_path: Path) -> Path:
    """A model folder as save_pretrained writes it."""
    where = tmp_path / "tiny"
    tiny.model.save_pretrained(where)
    tiny.tokenizer.save_pretrained(where)
    return where


@pytest.fixture(scope="session")
def browser():
    """The machine's own Chromium, driven by playwright; nothing is downloaded."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the extra `site` is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found)
        yield started
        started.close()
