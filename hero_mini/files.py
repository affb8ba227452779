"""Files that are there whole or not at all, and what is checked before one is written. Imports no torch when loaded."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from hero_mini.errors import HeroError, first_line


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
