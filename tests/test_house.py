"""The house: what is installed, and the errors, files and seeds that everything else stands on."""

from __future__ import annotations

import errno
import os
import re
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import hero_mini
from hero_mini.errors import HeroError
from hero_mini.files import atomic_write, check_out
from hero_mini.seeds import resampler, rng

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHON = SpecifierSet(PROJECT["requires-python"])
EIGHT = {"jupyterlab", "torch", "transformers", "matplotlib", "pandas", "ipywidgets", "nbval", "papermill"}


def lines(file: str) -> list[str]:
    """A file's lines without comments and list dashes."""
    stripped = (re.sub(r"^\s*(- )?\s*|\s*#.*$", "", line) for line in (ROOT / file).read_text().splitlines())
    return [line for line in stripped if line]


def test_environment_agrees_with_pyproject() -> None:
    ours = {Requirement(text).name: Requirement(text) for text in PROJECT["dependencies"]}
    conda = lines("environment.yml")
    assert conda[1:4] == ["channels:", "conda-forge", "nodefaults"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert EIGHT <= set(ours)
    named = {Requirement(line).name: Requirement(line) for line in conda if re.match(r"[a-z]+>=", line)}
    assert set(named) - {"python"} == EIGHT
    assert all(named[name].specifier == ours[name].specifier for name in EIGHT)
    assert conda.index("pip:") < conda.index("torch" + str(ours["torch"].specifier)) < conda.index("-e .")


def test_constraints_satisfy_pyproject() -> None:
    exact = dict(line.split("==") for line in lines("constraints.txt"))
    exact = {name.lower().replace("_", "-"): version for name, version in exact.items()}
    assert exact["torch"] == "2.13.0"
    extras = PROJECT["optional-dependencies"]
    for text in PROJECT["dependencies"] + extras["test"] + extras["site"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(exact[requirement.name]), text


def test_binder_installs_what_make_installs() -> None:
    """With a folder .binder, Binder reads nothing else."""
    assert Version((ROOT / ".binder/runtime.txt").read_text().strip().removeprefix("python-")) in PYTHON
    asked = lines(".binder/requirements.txt")
    assert asked[-2:] == ["-c ../constraints.txt", "-e ."]


def test_version() -> None:
    assert hero_mini.__version__ == PROJECT["version"]


def test_generators_are_named() -> None:
    """Different names or seeds give different streams, and the streams are the same in every process."""
    names = [(0, "a"), (0, "b"), (1, "a"), (0, "a", 1), (0, "a", "1"), (0,)]
    for made in (rng, resampler):
        assert len({made(*name).random() for name in names}) == len(names)
    assert rng(0, "a").randrange(10**6) == 81_842


def test_generators_leave_the_global_stream_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    rng(5, "x").random(), resampler(5, "x").random()
    assert torch.equal(torch.rand(2), expected)


def test_atomic_write(tmp_path: Path) -> None:
    file = atomic_write(tmp_path / "new" / "rows.csv", "ä\n")
    assert file.read_bytes() == "ä\n".encode()
    atomic_write(file, b"\x00")
    assert file.read_bytes() == b"\x00" and os.listdir(file.parent) == ["rows.csv"]


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(device := tmp_path / "null")
    for write in (check_out, lambda path: atomic_write(path, "rows")):
        with pytest.raises(HeroError, match="null is no ordinary file; name another"):
            write(device)
    assert not device.is_file() and os.listdir(tmp_path) == ["null"]


@pytest.mark.parametrize("code, says", [(errno.ENOSPC, "is full: free some space"), (errno.EROFS, "cannot be written")])
def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    file = atomic_write(tmp_path / "rows.csv", "old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(HeroError, match=f"{re.escape(str(tmp_path))} {says}"):
        atomic_write(file, "new")
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["rows.csv"]
