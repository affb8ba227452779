"""Where the runs of a study are worked on: one after the other on this machine, or side by side on a Ray cluster.

An engine takes the planned jobs and a function that does one of them, and yields each job with its outcome as soon as
it is there. `begin` is called with a job when it is handed over. `call` runs a command of a job.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from hero_mini.errors import HeroError

Job = TypeVar("Job")
Outcome = dict[str, str | float]


def local(
    jobs: Sequence[Job], do: Callable[[Job], Outcome], begin: Callable[[Job], None]
) -> Iterator[tuple[Job, Outcome]]:
    """One job after the other, each with all cores."""
    for job in jobs:
        begin(job)
        yield job, do(job)


def call(command: Sequence[str]) -> int:
    """Run a command, which on Linux is killed when this process is; returns its exit status."""
    if sys.platform != "linux":  # a training that is left over keeps the lock of its folder, see `run.Run`
        return subprocess.run(command, check=False).returncode
    control, us, set_deathsig = ctypes.CDLL(None).prctl, os.getpid(), 1  # PR_SET_PDEATHSIG

    def die_with_us() -> None:
        control(set_deathsig, signal.SIGKILL)
        if os.getppid() != us:  # it was too late
            os._exit(1)

    return subprocess.run(command, check=False, preexec_fn=die_with_us).returncode


def on_ray(
    jobs: Sequence[Job],
    do: Callable[[Job], Outcome],
    begin: Callable[[Job], None],
    *,
    cpus: int | None = None,
    gpus: float = 0,
) -> Iterator[tuple[Job, Outcome]]:
    """Every job a Ray task; in the order in which they finish.

    The nodes need this package and the same files under the same paths (a shared disk). The cluster is that of
    RAY_ADDRESS, or the one of this machine, or a new one on this machine.
    cpus, gpus: what a run asks for (default: as many cores as this machine has)
    raises HeroError: Ray is not installed, or no node has that much
    """
    try:
        import ray
    except ImportError as problem:
        raise HeroError("the engine ray needs Ray: pip install -e '.[ray]'") from problem
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, logging_level="error")
    try:
        wanted = {"CPU": cpus or os.cpu_count() or 1, "GPU": gpus}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(kind, 0) >= n for kind, n in wanted.items()) for node in nodes):
            asked = f"{wanted['CPU']} cores and {gpus:g} GPUs"
            raise HeroError(f"no node of the Ray cluster has {asked}; set --cpus and --gpus to what a run needs")
        task = ray.remote(lambda job: do(job)).options(num_cpus=wanted["CPU"], num_gpus=gpus)
        waiting = {}
        for job in jobs:
            waiting[task.remote(job)] = job
            begin(job)
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(done)
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayError as problem:  # the task raised, or its node is lost
                outcome = {"status": f"failed: {str(problem).strip().splitlines()[-1]}", "minutes": 0.0}
            yield job, outcome
    finally:
        if ours:
            ray.shutdown()
