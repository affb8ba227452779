"""What is set before torch and the hub's libraries are loaded: memory that is kept, and silence."""

from __future__ import annotations

import ctypes
import os
import platform
import warnings

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
