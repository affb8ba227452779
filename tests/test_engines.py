"""The engines of a study, Ray's on a cluster of two nodes on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from hero_mini.engines import local, on_ray
from hero_mini.errors import HeroError

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    two.add_node(num_cpus=1)
    ray.init(address=two.address, logging_level="error")
    yield two
    ray.shutdown()
    two.shutdown()


def test_the_local_engine_does_one_after_the_other() -> None:
    order = []
    for job, outcome in local("ab", lambda job: order.append(f"{job} done") or {"status": "finished"}, order.append):
        order.append(f"{job} {outcome['status']}")
    assert order == ["a", "a done", "a finished", "b", "b done", "b finished"]


def test_ray_uses_both_nodes_and_names_what_failed(cluster, tmp_path: Path) -> None:
    def do(job: str) -> dict:
        import time

        import ray

        if job == "broken":
            raise OSError("no space left")
        (tmp_path / job).write_text(ray.get_runtime_context().get_node_id())
        deadline = time.time() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.time() < deadline:  # each waits until the other runs
            time.sleep(0.1)
        return {"status": "finished", "minutes": 1.0}

    begun = []
    found = dict(on_ray(["a", "b", "broken"], do, begun.append, cpus=1))
    assert begun == ["a", "b", "broken"] and set(found) == set(begun)
    assert found["a"]["status"] == found["b"]["status"] == "finished"
    assert found["broken"]["status"] == "failed: OSError: no space left"
    assert (tmp_path / "a").read_text() != (tmp_path / "b").read_text()


def test_ray_says_when_no_node_has_as_much(cluster) -> None:
    with pytest.raises(HeroError, match="no node of the Ray cluster has 64 cores and 0 GPUs"):
        list(on_ray(["a"], lambda job: {}, lambda job: None, cpus=64))


def test_a_study_on_ray_gives_the_same_tables(cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hero_mini import study as module

    def quick(job, folder, size) -> dict:
        """`study.run` without any training."""
        import pandas as pd

        from hero_mini.records import note_steps

        own = folder / job.name
        own.mkdir(parents=True)
        table = pd.DataFrame({"task": ["t/0", "t/1"], "trial": 0, "success": float(job.seed)})
        steps = job.steps(own, size)
        for step in steps:
            (pd.DataFrame({"update": [0, 1]}) if step.suffix == "_curves" else table).to_csv(step.file, index=False)
        note_steps(own, {step.key: {"minutes": 0.5, "commit": "abc", "date": "2026-01-01"} for step in steps})
        return {"status": "finished", "minutes": 0.5 * len(steps)}

    monkeypatch.setattr(module, "run", lambda *given, **named: quick(*given, **named))
    for name, engine in (("a", local), ("b", partial(on_ray, cpus=1))):
        done = module.study("hero_retail", "full", runs=tmp_path / name, data=tmp_path / f"{name}-data", engine=engine)
        assert len(done) == 9 and set(done["status"]) == {"finished"}
    one, two = ((tmp_path / f"{name}-data/hero_retail.csv").read_text() for name in "ab")
    assert one == two
