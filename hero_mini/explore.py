"""One rollout to play with: step through it, edit a diagnosis, and see how its teachers change their minds.

Where no kernel is live (papermill, GitHub, print), the same picture stands still.
"""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets
from IPython.display import display

from hero_mini import envs, figures, nb, viewer
from hero_mini.demos import expert_run
from hero_mini.models import Policy
from hero_mini.reflect import VERDICTS, Diagnosis, Reflection, self_reflector
from hero_mini.rollout import Rollout, collect, pieces
from hero_mini.teacher import score_rollouts

SHOWN = ("full_demo", "env_feedback", "hero")
NONE = "no diagnosis"
N_TASKS = 12  # to choose from
WIDE = widgets.Layout(width="32em")


class Credit:
    """What the teachers of several contexts say about one rollout, next to what the student said."""

    def __init__(self, policy: Policy, rollout: Rollout, diagnoses: Sequence[Diagnosis | None]):
        self.policy, self.rollout, self.diagnoses = policy, rollout, list(diagnoses)
        self.demo = expert_run(policy, rollout.env, rollout.task_id)
        (self.student,) = score_rollouts(policy, [rollout], "none")
        self.edges = {context: self.scored(context) for context in SHOWN}

    def scored(self, context: str) -> list[list[float] | None]:
        """log π_T − log π_S per turn and token, in nats; None where the teacher is told nothing."""
        if context == "full_demo" and self.demo.actions == self.rollout.actions:  # nothing to copy but itself
            return [None] * len(self.rollout.turns)
        (told,) = score_rollouts(self.policy, [self.rollout], context, [self.diagnoses], [self.demo])
        both = zip(told.logprobs, self.student.logprobs, strict=True)
        return [None if teacher is None else (teacher - student).tolist() for teacher, student in both]

    def edit(self, t: int, diagnosis: Diagnosis | None) -> None:
        """Another diagnosis of turn `t`: only the teacher that reads diagnoses changes its mind."""
        self.diagnoses[t] = diagnosis
        self.edges["hero"] = self.scored("hero")

    def of_turn(self, t: int) -> dict[str, list[float]]:
        """The edges of one turn's tokens by context."""
        return {context: turns[t] for context, turns in self.edges.items() if turns[t] is not None}

    def sums(self, t: int) -> str:
        """The credit of one turn under every context, in words."""
        return ", ".join(f"{context} {sum(edge):+.2f}" for context, edge in self.of_turn(t).items())

    def most_blamed(self) -> int:
        """The turn that the teacher with the diagnoses likes least; the first if there is no diagnosis."""
        sums = {t: sum(edge) for t, edge in enumerate(self.edges["hero"]) if edge is not None}
        return min(sums, key=sums.get) if sums else 0

    def figure(self, t: int) -> figures.Figure:
        return figures.credit_figure(pieces(self.policy, self.rollout.turns[t]), self.of_turn(t))

    def html(self, context: str) -> str:
        reflection = Reflection(tuple(self.diagnoses), "")
        return viewer.as_html(self.rollout, reflection, self.edges[context], self.policy)


def explore(policy: Policy, rollout: Rollout, reflection: Reflection) -> None:
    """One rollout under three teachers: step through it, edit a diagnosis, take another task or seed.

    Not live: the turn that the HERO teacher likes least, under the three contexts.
    """
    credit = Credit(policy, rollout, reflection.diagnoses)
    if nb.live():
        display(explorer(credit))
        return
    t = credit.most_blamed()
    action, sums = rollout.turns[t].action, credit.sums(t)
    nb.show(
        credit.figure(t),
        alt=f"Credit per token of turn {t + 1}, {action}, under three contexts. Sums in nats: {sums}.",
    )


def explorer(credit: Credit) -> widgets.VBox:
    """The widgets of `explore`."""
    policy, world = credit.policy, envs.make(credit.rollout.env)
    names = [task.id for task in world.tasks("train", N_TASKS)]
    names += [name for name in [credit.rollout.task_id] if name not in names]
    task = widgets.Dropdown(options=names, value=credit.rollout.task_id, description="task", layout=WIDE)
    seed = widgets.BoundedIntText(value=0, min=0, max=999, description="seed")
    again = widgets.Button(description="Act and reflect again", icon="play", layout=widgets.Layout(width="auto"))
    context = widgets.ToggleButtons(options=SHOWN, value="hero", description="shading")
    turn = widgets.IntSlider(min=1, max=len(credit.rollout.turns), value=credit.most_blamed() + 1, description="turn")
    verdict = widgets.Dropdown(options=[NONE, *VERDICTS], description="verdict", layout=WIDE)
    cause = widgets.Text(description="cause", continuous_update=False, layout=WIDE)
    better = widgets.Text(description="better", continuous_update=False, layout=WIDE)
    said, picture, note = widgets.HTML(), widgets.Image(format="png"), widgets.HTML()
    shown = {"credit": credit, "filling": False}  # filling: the fields follow the turn, nobody edits them

    def draw() -> None:
        now, t = shown["credit"], turn.value - 1
        said.value, picture.value = now.html(context.value), figures.render(now.figure(t))
        note.value = f"Turn {t + 1}, log π_T − log π_S in nats: {now.sums(t)}"

    def fill(_: object = None) -> None:
        diagnosis = shown["credit"].diagnoses[turn.value - 1]
        shown["filling"] = True
        verdict.value = diagnosis.verdict if diagnosis else NONE
        cause.value, better.value = (diagnosis.cause, diagnosis.better or "") if diagnosis else ("", "")
        shown["filling"] = False
        draw()

    def edit(_: object) -> None:
        if shown["filling"]:
            return
        told = None if verdict.value == NONE else Diagnosis(verdict.value, cause.value, better.value or None)
        shown["credit"].edit(turn.value - 1, told)
        draw()

    def act(_: object) -> None:
        note.value = "The agent acts and reflects…"
        (rollout,) = collect(policy, credit.rollout.env, [world.task_named(task.value)], seed=seed.value)
        (reflection,) = self_reflector(policy)([rollout])
        shown["credit"] = Credit(policy, rollout, reflection.diagnoses)
        turn.unobserve(fill, "value")
        turn.max, turn.value = len(rollout.turns), shown["credit"].most_blamed() + 1
        turn.observe(fill, "value")
        fill()

    context.observe(lambda _: draw(), "value")
    turn.observe(fill, "value")
    for field in (verdict, cause, better):
        field.observe(edit, "value")
    again.on_click(act)
    fill()
    right = widgets.VBox([turn, verdict, cause, better, picture, note])
    return widgets.VBox([widgets.HBox([task, seed, again]), context, widgets.HBox([said, right])])
