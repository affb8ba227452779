"""What everything else stands on: memory settings, seeded generators, whole-or-nothing files, errors for people.

Nothing here imports torch when it is loaded, so that `--help` stays quick.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import platform
import random
import re
import shutil
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from hashlib import sha256
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class HeroError(Exception):
    """An error a reader can act on: what went wrong and the remedy, in one sentence."""


def nearest(name: str, options: Iterable[str]) -> str:
    """The likely meaning of a misspelt name, to be put behind it in a message; empty if nothing is near.

    >>> nearest("retial", ["retail", "airline"]), nearest("xyz", ["retail"])
    (" (did you mean 'retail'?)", '')
    """
    found = get_close_matches(str(name), list(options), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def check_known(what: str, name: object, known: Collection[str]) -> None:
    """raises HeroError: `name` is none of the known ones; the message names the near one, and all

    >>> check_known("preset", "qick", ["smoke", "quick"])
    Traceback (most recent call last):
    hero_mini.runtime.HeroError: unknown preset 'qick' (did you mean 'quick'?); there are: smoke, quick
    """
    if not isinstance(name, str) or name not in known:
        raise HeroError(f"unknown {what} {name!r}{nearest(str(name), known)}; there are: {', '.join(known)}")


def check_whole(least: int, **numbers: object) -> None:
    """raises HeroError: one of them is no whole number, or below `least`

    >>> check_whole(1, max_turns=2.5)
    Traceback (most recent call last):
    hero_mini.runtime.HeroError: max_turns is 2.5; it must be a whole number, at least 1
    """
    for name, value in numbers.items():
        if not isinstance(value, Integral) or value < least:
            raise HeroError(f"{name} is {value!r}; it must be a whole number, at least {least}")


def first_line(error: Exception) -> str:
    """What a library complains of, short enough for a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".:")


def expanded(path: str | Path) -> Path:
    """The path with ~ spelt out. raises HeroError: nobody of that name has a home here, or it can be no path"""
    try:
        found = Path(path).expanduser()
        found.exists()  # too long a name
    except (RuntimeError, OSError, ValueError) as problem:
        raise HeroError(f"{str(path)[:80]!r} is no path here ({first_line(problem)}); check the spelling") from problem
    return found


def weights_digest(place: str | Path) -> str:
    """Eight hex digits of the weights in a folder, of the first and the last megabyte of each file; empty without any.

    It changes where a model was trained on or replaced; finding that out costs no loading.
    """
    digest, files = sha256(), sorted(Path(place).glob("*.safetensors"))
    for file in files:
        with file.open("rb") as weights:
            digest.update(weights.read(1 << 20))
            weights.seek(max(0, file.stat().st_size - (1 << 20)))
            digest.update(weights.read())
    return digest.hexdigest()[:8] if files else ""


# --- memory ----------------------------------------------------------------------------------------------------------
# mallopt parameters, from glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed tensors instead of giving them back to the kernel; True if it was done.

    By default every tensor above 32 MiB is a fresh mapping whose pages the kernel zeroes one fault at a time: with
    that, 25-40 % of a training step on a CPU is system time. Elsewhere than on glibc (macOS, Windows, musl) nothing
    is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_TOP_PAD, 64 << 20)]
    return all(done)


def quiet_libraries() -> None:
    """Silence the progress bars and advice of the hub libraries; to be called before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # peft asks transformers for this attribute; the warning would put a path of this machine into every notebook
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


# --- seeds -----------------------------------------------------------------------------------------------------------
def _derive(seed: int, name: tuple[str | int, ...]) -> int:
    """A 63-bit seed that depends on every part of the name; the same on every machine and in every Python."""
    text = repr((int(seed), *name)).encode()
    return int.from_bytes(sha256(text).digest()[:8], "big") >> 1


def rng(seed: int, *name: str | int) -> random.Random:
    """A generator of its own for each purpose, so that drawing for one never shifts another.

    >>> draw = lambda *name: rng(7, *name).random()
    >>> draw("rollout", 3) == draw("rollout", 3), draw("rollout", 3) == draw("rollout", 4)
    (True, False)
    """
    return random.Random(_derive(seed, name))


def resampler(seed: int, *name: str | int) -> np.random.Generator:
    """The same for a bootstrap's draws, many at a time."""
    import numpy as np

    return np.random.default_rng(_derive(seed, name))


# --- files -----------------------------------------------------------------------------------------------------------
@contextmanager
def writing(folder: str | Path, remedy: str = "free some space there, or choose another folder") -> Iterator[None]:
    """Turns a full disk or a forbidden folder into a HeroError that names the folder and the remedy."""
    try:
        yield
    except Exception as error:
        told = re.search(r"os error (\d+)", str(error))  # safetensors has no error number
        code = getattr(error, "errno", None) or (int(told[1]) if told else None)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise HeroError(f"The disk that holds {folder} is full: {remedy}.") from error
        if code in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG):
            where = getattr(error, "filename2", None) or getattr(error, "filename", None) or folder
            raise HeroError(f"{where} is in the way ({os.strerror(code)}): choose another name.") from error
        if (isinstance(error, OSError) or told) and code and not isinstance(error, ConnectionError):
            raise HeroError(f"The folder {folder} cannot be written to ({error}): {remedy}.") from error
        raise


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Write a file that is there whole or not at all, also after a kill or a power cut; returns the path.

    raises HeroError: the disk is full or the folder may not be written to
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    check_ordinary(path)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            open_to_others(name)  # mkstemp's 0600 would hide results from colleagues
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    return path


def open_to_others(file: str | Path) -> None:
    """Give a file the rights that a new one has."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(file, 0o666 & ~umask)


def check_ordinary(path: Path) -> None:
    """raises HeroError: a device or the like, such as /dev/null, would be replaced by a file"""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise HeroError(f"{path} is no ordinary file; name another")


def read_json(path: str | Path, remedy: str = "restore it, for example with git checkout") -> dict:
    """What a JSON file of ours holds. raises HeroError: it is damaged"""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as problem:
        raise HeroError(f"{path} is damaged ({problem}); {remedy}") from problem
    if not isinstance(found, dict):
        raise HeroError(f"{path} is damaged (no object); {remedy}")
    return found


@contextmanager
def alone(lock: Path, busy: str) -> Iterator[None]:
    """No other process is inside with the same lock file, which stays. raises HeroError: one is, in the words of `busy`

    The operating system gives the lock back when the process ends, however it ends.
    """
    from filelock import FileLock, Timeout

    with writing(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout as problem:
            raise HeroError(busy) from problem
    try:
        yield
    finally:
        held.release()


RUN_FILES = ("config.json", "metrics.csv", "checkpoint.pt")  # of a training, see `run`


def check_out(path: str | Path) -> None:
    """Before long work: whether its result can be written to this file. raises HeroError: it cannot"""
    path = Path(path)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as some:
            some.write(bytes(1 << 16))  # a full disk takes an empty file
    check_ordinary(path)
    if path.is_dir():
        raise HeroError(f"{path} is a folder; name a file in it")
    of_a_run = path.name in RUN_FILES and (path.parent / "checkpoint.pt").exists()
    if of_a_run or (path.name == "config.json" and path.exists()):
        raise HeroError(f"{path} is a file of a training or a model; choose another name")


def check_clone(*needed: str | Path) -> None:
    """raises HeroError: some of these files and folders of the repository are not here"""
    if missing := [str(path) for path in needed if not Path(path).exists()]:
        raise HeroError(f"no {', '.join(missing)} here; run this in the top folder of a clone of the repository")


def check_adapter_folder(path: str | Path) -> None:
    """raises HeroError: something else than an adapter would be lost if an adapter took the place of `path`"""
    path = Path(path)
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty and not (path / "adapter_config.json").exists():
        raise HeroError(f"{path} holds something else than an adapter; choose a new folder")


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A scratch folder for an adapter, which takes the place of `path` when all is there, also after a power cut.

    Where an older one has to go first, a kill at that very moment leaves neither.
    raises HeroError: disk full, not writable, or `path` is no adapter's
    """
    path = Path(path)
    check_adapter_folder(path)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as work:
            yield (new := Path(work) / "new")
            for file in new.iterdir():
                open_to_others(file)  # safetensors writes for its owner alone
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
            if path.exists():
                path.rename(Path(work) / "old")
            new.rename(path)


def sweep(folder: Path, *names: str) -> None:
    """Remove what a kill left half written of these files and adapters in a folder; a name may hold a *."""
    for path in (folder / name for name in names):
        for left in path.parent.glob(f".{path.name}[.-]*"):  # scratch of `atomic_write` and `whole_folder`
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def atomic_save(path: str | Path, state: object) -> Path:
    """`torch.save` that is there whole or not at all."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return atomic_write(path, buffer.getvalue())


# What is raised where something else than expected is in a file that `load_saved` could read
UNFIT = (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError)


def load_saved(path: str | Path, remedy: str = "delete it with its folder, and start again") -> dict:
    """What `atomic_save` wrote. raises HeroError: the file is damaged"""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # tensors and plain values: runs no code
    except Exception as error:  # torch, pickle and zipfile each have their own kinds
        raise HeroError(f"{path} is damaged ({first_line(error)}); {remedy}") from error
