"""A training to watch in a running Jupyter: curves that grow, a stop button, and the agent before and after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from html import escape
from pathlib import Path

import ipywidgets as widgets
import pandas as pd

from hero_mini import envs, figures, viewer
from hero_mini.config import TrainConfig
from hero_mini.errors import first_line
from hero_mini.models import Policy, load_policy
from hero_mini.rollout import collect

EVERY = 1.0  # seconds between two looks at the metrics


def heed_interrupts() -> None:
    """In the new process: the stop button works also where a script started all of this behind an `&`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class LiveTraining:
    """A training in a process of its own, so that the notebook stays free; `box` is what to display.

    Stop is a keyboard interrupt: it leaves the agent of the last whole update in `out`, and Train goes on from there.

    policy: the agent before training;  model: what it was loaded from, for the other process
    """

    def __init__(self, policy: Policy, config: TrainConfig, out: str | Path, *, model: str = "default"):
        self.policy, self.config, self.out, self.model = policy, config, Path(out), model
        self.process: subprocess.Popen | None = None
        self.train = widgets.Button(description="Train", icon="play")
        self.stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.state = widgets.HTML(f"{config.updates} updates of {config.tasks} tasks")
        self.curves, self.episodes = widgets.HBox(), widgets.HBox()
        self.train.on_click(lambda _: self.begin())
        self.stop.on_click(lambda _: self.interrupt())
        self.box = widgets.VBox([widgets.HBox([self.train, self.stop, self.state]), self.curves, self.episodes])

    def command(self) -> list[str]:
        """The training as a command: whatever differs from the defaults, and what has no fixed one there."""
        default, options = asdict(TrainConfig()), []
        for name, value in asdict(self.config).items():
            if value != default[name] or name in ("updates", "tasks", "max_turns"):
                options += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        command = [sys.executable, "-m", "hero_mini", "train", "--model", self.model]
        return [*command, *options, "--out", str(self.out)]

    def begin(self) -> threading.Thread:
        """Start or go on, watched from a thread, which is returned."""
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(
            self.command(), **pipes, preexec_fn=heed_interrupts if os.name == "posix" else None
        )
        self.train.disabled, self.stop.disabled = True, False
        self.state.value = "The model is being loaded…"
        watcher = threading.Thread(target=self.watch, daemon=True)
        watcher.start()
        return watcher

    def interrupt(self) -> None:
        """What the stop button does."""
        self.stop.disabled = True
        self.state.value = "Stopping…"
        self.process.send_signal(signal.SIGINT)

    def watch(self) -> None:
        """Follow the process until it ends, then let both agents play; whatever goes wrong is said in the box."""
        try:
            self.follow()
        except Exception as problem:  # nobody else would hear of it in this thread
            self.train.disabled, self.stop.disabled = False, True
            self.state.value = f"<b>It stopped:</b> {escape(first_line(problem))}"

    def follow(self) -> None:
        """See `watch`."""
        complaint = None
        while complaint is None:
            try:
                complaint = self.process.communicate(timeout=EVERY)[1]
            except subprocess.TimeoutExpired:
                self.draw()
        done = self.draw()
        self.train.disabled, self.stop.disabled = done == self.config.updates, True
        if (status := self.process.returncode) not in (0, 130, -signal.SIGINT):  # 130: interrupted
            said = complaint.strip().splitlines()[-1:] or ["without a word"]
            why = "killed, often for want of memory" if status == -signal.SIGKILL else said[0]
            self.state.value = f"<b>It stopped:</b> {escape(why)}"
        elif done:
            self.compare()
        else:
            self.state.value = "Stopped before the first update was done"

    def draw(self) -> int:
        """The curves as far as they have come; returns the number of whole updates."""
        file = self.out / "metrics.csv"
        metrics = pd.read_csv(file) if file.exists() else pd.DataFrame()
        if len(metrics):
            rows = metrics.assign(arm=self.config.arm, seed=self.config.seed)
            picture = figures.render(figures.learning_curves(rows, ("success", "turns", "loss")))
            self.curves.children = [widgets.Image(value=picture, format="png")]
            self.state.value = f"{len(metrics)} of {self.config.updates} updates"
        return len(metrics)

    def compare(self) -> None:
        """The first held-out task, by the agent before and after."""
        (task,) = envs.make(self.config.env).tasks("test", 1)
        agents = {"before": self.policy, "after": load_policy(self.model, adapter=self.out / "adapter")}
        shown = []
        for name, agent in agents.items():
            (rollout,) = collect(agent, self.config.env, [task], seed=self.config.seed, **self.config.rollout_settings)
            html = viewer.as_html(rollout, policy=agent)
            shown.append(widgets.HTML(f"<b>{name}</b>{html}", layout=widgets.Layout(width="50%")))
        self.episodes.children = shown
