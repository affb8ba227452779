"""Where a teacher's probability falls: places on scripted rollouts, masses by hand, variants that say what they say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from hero_mini import envs, figures, figures_demo
from hero_mini.config import TrainConfig
from hero_mini.demos import expert_run
from hero_mini.envs.airline import NEW_CERTIFICATES
from hero_mini.envs.tau_script import CLOSING, OUT_OF_SCOPE
from hero_mini.errors import HeroError
from hero_mini.growth import growth, kept
from hero_mini.mechanism import MASSES, STUDENT, heat, measure, per_turn, place_tree, summary
from hero_mini.models import Policy, fingerprint
from hero_mini.reflect import Reflection, oracle
from hero_mini.rollout import Rollout, close_action, collect, open_action, play
from hero_mini.seeds import rng
from hero_mini.teacher import demonstration_text
from hero_mini.told import KINDS, Told, all_teachers, demonstrated, hinted, vary
from hero_mini.track import names, track
from hero_mini.train import train
from hero_mini.tree import logprobs
from hero_mini.warmup import WarmupConfig, scripted_episode


def scripted(policy: Policy, task_id: str, *actions: str, max_turns: int = 10) -> Rollout:
    """These actions one after the other, then the expert's."""
    left = list(actions)
    world = envs.make("retail", max_turns=max_turns)
    return play(policy, world, world.task_named(task_id), lambda e: left.pop(0) if left else str(e.expert()))


every_world = pytest.mark.parametrize("world", ("retail", "airline", "webshop"))


def of_family(family: str) -> str:
    """A task whose run has a write and at least one read before it."""
    return next(t.id for t in envs.make("retail").tasks("train", 60) if t.family == family and not t.world["twist"])


@pytest.fixture
def task_id() -> str:
    return of_family("cancel")


@pytest.fixture
def rollouts(tiny: Policy) -> list[Rollout]:
    tasks = envs.make("retail").tasks("train", 2)
    made = [
        scripted_episode(tiny, t, rng(0, "test", t.index, k), WarmupConfig()).rollout for t in tasks for k in (0, 1)
    ]
    return [replace(r, turns=r.turns[:4], repeat=k % 2) for k, r in enumerate(made)]


# --- where the student stands ----------------------------------------------------------------------------------------
def test_the_expert_never_leaves_its_path(tiny: Policy, task_id: str) -> None:
    run = expert_run(tiny, "retail", task_id)
    mine = track(tiny, run)
    assert mine.steps == tuple(t.action for t in run.turns) and mine.run == run
    assert mine.due == tuple(range(len(run.turns))) == tuple(mine.due_turns)
    assert all(mine.on_path)


def test_a_needless_turn_leaves_the_path_and_keeps_the_place(tiny: Policy, task_id: str) -> None:
    plain = track(tiny, expert_run(tiny, "retail", task_id))
    student = scripted(tiny, task_id, plain.steps[0], "get_order_details(order_id='#W1234')")
    mine = track(tiny, student)
    assert mine.due[:4] == (0, 1, 1, 2)
    assert mine.on_path[:4] == (True, True, False, False)


def test_spelling_does_not_matter(tiny: Policy, task_id: str) -> None:
    """A call as JSON is the same step."""
    steps = track(tiny, expert_run(tiny, "retail", task_id)).steps
    at = next(k for k, s in enumerate(steps) if s.startswith("find_user"))
    call = envs.parse_action(steps[at])
    spelt = json.dumps({"name": call.name, "arguments": call.arguments})
    mine = track(tiny, scripted(tiny, task_id, *steps[:at], spelt))
    assert mine.on_path[at + 1] and mine.due[at + 1] == at + 1


def test_after_a_wrong_write_only_the_end_is_due(tiny: Policy, task_id: str) -> None:
    run = expert_run(tiny, "retail", task_id)
    world = envs.make("retail").task_named(task_id).world
    order = next(o for o in world["db"]["orders"] if world["db"]["orders"][o]["status"] == "pending")
    wrong = f"cancel_pending_order(order_id='{order}', reason='no longer needed')"
    mine = track(tiny, scripted(tiny, task_id, run.turns[0].action, wrong))
    assert mine.steps[mine.due[2]] == CLOSING and not mine.on_path[2]


def test_ids_are_seen_when_an_observation_has_named_them(tiny: Policy, task_id: str) -> None:
    run = expert_run(tiny, "retail", task_id)
    mine = track(tiny, run)
    assert names(mine.steps[-1]) == set() and CLOSING not in mine.unseen[0]
    write = next(s for s in mine.steps if s.startswith("cancel_"))
    assert names(write) and write in mine.unseen[0]
    assert not mine.unseen[-1]  # the expert names nothing that it has not been shown
    for turn, hidden in zip(run.turns, mine.unseen, strict=True):
        assert turn.action not in hidden
    assert all(later <= earlier for earlier, later in zip(mine.unseen, mine.unseen[1:], strict=False))


# --- what is an id ---------------------------------------------------------------------------------------------------
def ids_of(task: envs.Task) -> set[str]:
    """Everything that has a name in the private data of a task: the oracle."""
    if "shop" in task.world:
        return {product.id for product in task.world["shop"]}
    db, found = task.world["db"], set()
    for key, user in db["users"].items():
        found |= {key, *(user[k] for k in ("email", "zip") if k in user)}
        found |= set(user.get("payments", user.get("payment_methods", ())))
    found |= {*db.get("orders", ()), *db.get("products", ()), *db.get("reservations", ()), *db.get("flights", ())}
    found |= {item for product in db.get("products", {}).values() for item in product["variants"]}
    found |= {date for flight in db.get("flights", {}).values() for date in flight["dates"]}
    return found | (set(NEW_CERTIFICATES) if "flights" in db else set())


@every_world
def test_ids_are_what_the_world_has_a_name_for(tiny: Policy, world: str) -> None:
    """In the expert's runs, against the private data: all ids and nothing else, so that amounts can be read."""
    for task in envs.make(world).tasks("train", 25):
        run = expert_run(tiny, world, task.id)
        text = "\n".join(part for t in run.turns for part in (t.observation, t.action, t.next_observation))
        known = {i for i in ids_of(task) if re.search(rf"(?<![\w.@#-]){re.escape(i)}(?![\w@])", text)}
        assert names(text) == known, task.id
        masked = demonstration_text(vary(run, "masked", range(len(run.turns))).run)
        assert not any(i in masked for i in known)
        for amount in (r"\$\d+", r"\b\d+ (?:oz|bags|paid)", r"\b\d+h ago", r"Page \d of \d"):
            assert re.findall(amount, masked) == re.findall(amount, demonstration_text(run)), (task.id, amount)


def test_what_is_masked_in_the_shop(tiny: Policy) -> None:
    """Products are hidden, the wish and the prices are not: the order of the steps can be read, no product copied."""
    task = envs.make("webshop").tasks("train", 1)[0]
    run = expert_run(tiny, "webshop", task.id)
    masked = vary(run, "masked", range(len(run.turns))).run
    products = {f"click[{product.id}]" for product in task.world["shop"]}
    assert products & {t.action for t in run.turns}
    assert [t.action for t in masked.turns] == ["click[[id]]" if t.action in products else t.action for t in run.turns]
    assert masked.turns[0].observation == run.turns[0].observation  # the wish, with its options and its limit
    results, hidden = run.turns[1].observation.split("\n"), masked.turns[1].observation.split("\n")
    assert hidden[0] == results[0] and hidden[-1] == results[-1]  # the number of the page, the buttons
    assert hidden[1:-1] == [f"[id] {line.split(' ', 1)[1]}" for line in results[1:-1]]
    assert all(re.search(r"\$\d+$", line) for line in hidden[1:-1])


@every_world
def test_the_expert_names_nothing_it_has_not_been_shown(tiny: Policy, world: str) -> None:
    for task in envs.make(world).tasks("train", 15):
        mine = track(tiny, expert_run(tiny, world, task.id))
        for turn, hidden in zip(mine.run.turns, mine.unseen, strict=True):
            assert turn.action not in hidden, task.id
    assert any(hidden for hidden in mine.unseen)  # at first, what the later steps name is not shown yet


def test_a_rollout_of_another_world_is_refused(tiny: Policy, task_id: str) -> None:
    run = expert_run(tiny, "retail", task_id)
    turns = (replace(run.turns[0], next_observation="something else"), *run.turns[1:])
    with pytest.raises(HeroError, match=f"turn 1 of {task_id} .* collect again"):
        track(tiny, replace(run, turns=turns))


# --- masses ----------------------------------------------------------------------------------------------------------
def alone(policy: Policy, rollout: Rollout, t: int, told: Told, ids: tuple[int, ...]) -> float:
    """The oracle: one action at one turn as one sequence in one plain pass; nats."""
    text = policy.message("system", rollout.system_prompt)
    if told.run is not None:
        text += policy.message("system", demonstration_text(told.run))
    for turn in rollout.turns[:t]:
        text += open_action(policy, turn.role, turn.observation) + list(turn.token_ids)
        text += close_action(policy, turn.token_ids)
    text += policy.message(rollout.turns[t].role, rollout.turns[t].observation)
    if told.texts is not None:
        text += policy.message("system", told.texts[t])
    text += policy.header() + list(ids)
    with torch.no_grad():
        logp = policy.model(torch.tensor([text])).logits[0, :-1].float().log_softmax(-1)
    return float(logp[-len(ids) :].gather(1, torch.tensor(ids)[:, None]).sum())


@pytest.mark.parametrize("kind", ["nothing", "expert", "truncated", "hero"])
def test_a_branch_equals_its_path_alone(tiny: Policy, rollouts: list[Rollout], kind: str) -> None:
    rollout, mine = rollouts[0], track(tiny, rollouts[0])
    if kind == "nothing":
        told = Told()
    elif kind == "hero":
        (told,) = hinted([rollout], "hero", oracle([rollout]))
    else:
        (told,) = demonstrated([rollout], [mine], kind)
    grown, nodes = place_tree(tiny, rollout, told, mine.steps)
    (scores,) = logprobs(tiny, [grown])
    for t, of_turn in enumerate(nodes):
        assert len(of_turn) == len(mine.steps) + 1
        for node, action in zip(of_turn, mine.steps, strict=False):
            expected = alone(tiny, rollout, t, told, (*tiny.encode(action), tiny.eos_id))
            assert float(scores[node].sum()) == pytest.approx(expected, abs=2e-3)
        own = alone(tiny, rollout, t, told, rollout.turns[t].token_ids)
        assert float(scores[of_turn[-1]].sum()) == pytest.approx(own, abs=2e-3)


def by_hand(*masses: float, at: int, context: str = STUDENT, unseen: tuple[int, ...] = ()) -> pd.DataFrame:
    """One turn of a run of three steps; the last of the masses is the transfer's, which is no step of the run."""
    rows = []
    for k, mass in enumerate(masses, 1):
        step = k if k <= 3 else 0
        rows.append({"context": context, "task": "t", "rollout": 0, "turn": 1, "on_path": True, "at_step": at,
                     "n_steps": 3, "step": step, "mass": mass, "ends": k >= 3, "unseen": k in unseen})  # fmt: skip
    return pd.DataFrame(rows)


def test_the_numbers_of_a_turn_by_hand() -> None:
    own = pd.DataFrame({"context": [STUDENT, "told"], "rollout": 0, "turn": 1, "good": True, "own": [-2.0, -0.5]})
    table = pd.concat([
        by_hand(0.1, 0.5, 0.2, 0.05, at=2), by_hand(0.0, 0.2, 0.6, 0.1, at=2, context="told", unseen=(2, 3)),
    ])  # fmt: skip
    student, told = per_turn(table, own).to_dict("records")
    expected = {"due": 0.5, "ahead": 0.2, "behind": 0.1, "other": 0.2, "ending": 0.25, "unseen": 0.0}
    assert {name: student[name] for name in MASSES} == pytest.approx(expected)
    assert student["place"] == pytest.approx((0.1 + 2 * 0.5 + 3 * 0.2) / 0.8) and student["edge"] == 0.0
    expected = {"due": 0.2, "ahead": 0.6, "behind": 0.0, "other": 0.2, "ending": 0.7, "unseen": 0.8}
    assert {name: told[name] for name in MASSES} == pytest.approx(expected)
    assert told["place_error"] == pytest.approx((2 * 0.2 + 3 * 0.6) / 0.8 - 2) and told["edge"] == 1.5


def test_the_right_ending_is_no_early_ending() -> None:
    own = pd.DataFrame({"context": [STUDENT], "rollout": 0, "turn": 1, "good": True, "own": -1.0})
    (turn,) = per_turn(by_hand(0.0, 0.1, 0.7, 0.1, at=3), own).to_dict("records")
    assert turn["due"] == 0.7 and turn["ending"] == pytest.approx(0.1) and turn["ahead"] == 0.0


def test_measure_covers_every_turn_of_every_teacher(tiny: Policy, rollouts: list[Rollout]) -> None:
    tracks = [track(tiny, r) for r in rollouts]
    teachers = all_teachers(rollouts, tracks, oracle(rollouts))
    chosen = {name: teachers[name] for name in ("hero", "full_demo", "next")}
    table, turns = measure(tiny, rollouts, tracks, chosen)
    n = sum(len(r.turns) for r in rollouts)
    assert turns.groupby("context").size().to_dict() == dict.fromkeys((STUDENT, *chosen), n)
    assert turns[["due", "ahead", "behind", "other"]].sum(axis=1).to_numpy() == pytest.approx(1.0)
    assert turns[list(MASSES)].ge(0).all(axis=None) and turns[list(MASSES)].le(1).all(axis=None)
    assert (turns.loc[turns["context"] == STUDENT, "edge"] == 0).all()
    assert (turns["at_step"] <= turns["n_steps"]).all() and turns["at_step"].min() == 1
    cells = heat(table, turns)
    sums = cells.groupby(["context", "on_path", "at_step"])["mass"].sum()
    assert sums.to_numpy() == pytest.approx(1.0)
    assert cells[cells["step"] == 0].groupby("context")["n"].sum().eq(n).all()
    numbers = summary(turns)
    assert set(numbers["context"]) == {STUDENT, *chosen} and set(numbers["number"]) >= {*MASSES, "auc", "gap"}
    mean = turns[turns["context"] == "next"].groupby("task")["due"].mean().mean()
    row = numbers[(numbers["context"] == "next") & (numbers["number"] == "due")].iloc[0]
    assert row["value"] == pytest.approx(mean) and row["n"] == 2
    for draw in (  # made afresh: a second drawing of the same figure may move its layout a little
        lambda: figures_demo.place_figure(cells, [STUDENT, "full_demo", "hero"]),
        lambda: figures_demo.mass_figure(numbers, {"ahead": "ahead", "place_error": "place error"}),
    ):
        assert figures.render(draw()) == figures.render(draw())


@pytest.mark.parametrize("arm", ["oracle_hero", "full_demo", "grpo"])
def test_a_run_keeps_an_agent_per_update_and_growth_measures_each(tiny: Policy, tmp_path: Path, arm: str) -> None:
    config = TrainConfig(arm=arm, updates=2, tasks=2, group=2 if arm == "grpo" else 1, max_turns=3, steps=1)
    train(tiny, config, tmp_path)
    (tmp_path / "updates" / "3").mkdir()  # begun, and never written down
    again, model, weights, agents = kept(tmp_path)
    assert again == config and (model, weights) == (tiny.name, fingerprint(tiny))
    assert [folder.name for folder in agents] == ["1", "2"]
    last, own = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("updates/2", "adapter"))
    assert all(torch.equal(last[name], own[name]) for name in own)
    tasks = envs.make("retail").tasks("validation", 3)
    rollouts = collect(tiny, "retail", tasks, seed=0, max_turns=3, max_action_tokens=8)
    grown = growth(tiny, config, rollouts, [tiny, tiny])
    assert set(grown["path"]) >= {"all", "on"} and set(grown["n"]) <= {1, 2, 3}
    student = grown[(grown["who"] == STUDENT) & (grown["path"] == "all")].pivot(
        index="number", columns="update", values="value"
    )
    assert set(student.index) == {*MASSES, "place_error"} and list(student.columns) == [0, 1, 2]
    assert student[0].equals(student[1])  # the same agent on the same turns
    told = grown[grown["who"] == "teacher"]
    assert set(told["update"]) == (set() if arm == "grpo" else {0})
    fig = figures_demo.growth_figure(grown.assign(arm=arm, seed=0), {"due": "on the due step", "ending": "ending"})
    assert [len(ax.get_lines()) for ax in fig.axes] == [2 if arm == "grpo" else 3] * 4  # a seed, the mean, the teacher


def test_growth_names_a_folder_without_agents(tmp_path: Path) -> None:
    with pytest.raises(HeroError, match="holds no agents by update: train it again, in a new folder"):
        kept(tmp_path)


def test_a_turn_without_a_hint_is_not_measured(tiny: Policy, rollouts: list[Rollout]) -> None:
    nothing = (None,) * len(rollouts[0].turns)
    (told,) = hinted(rollouts[:1], "hero", [Reflection(nothing, "")])
    assert told.texts == nothing
    _, turns = measure(tiny, rollouts[:1], [track(tiny, rollouts[0])], {"hero": [told]})
    assert set(turns["context"]) == {STUDENT}


def test_outcomes_are_drawn_at_their_numbers() -> None:
    points = pd.DataFrame(
        {"arm": ["a", "b"], "gain": [0.1, -0.2], "low": [0.0, -0.3], "high": [0.2, -0.1], "auc": [0.9, 0.6]}
    ).assign(each=[(0.1,), (-0.3, -0.1)], warm_up=["all", "none"])
    fig = figures_demo.outcome_figure(points, {"auc": "edge"})
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.texts] == ["1", "2"] and [t.xy for t in ax.texts] == [(0.9, 0.1), (0.6, -0.2)]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["1 a; all", "2 b; none"]


# --- endings ---------------------------------------------------------------------------------------------------------
@every_world
def test_the_endings_of_a_world_end_its_episodes(tiny: Policy, world: str) -> None:
    """Each closes an episode where its time has come, and the track of a rollout knows them."""
    task = next(
        t for t in envs.make(world).tasks("train", 40) if not t.world.get("forbidden") and t.gold or "goal" in t.world
    )
    run = expert_run(tiny, world, task.id)
    endings = envs.make(world).endings
    assert track(tiny, run).endings == endings
    for ending in endings:
        env = envs.make(world, max_turns=50)
        env.reset(options={"task": task})
        for turn in run.turns[:-1]:
            env.step(turn.action)
        assert env.step(ending)[2], ending


def test_retail_and_airline_end_as_before(tiny: Policy) -> None:
    for world in ("retail", "airline"):
        assert envs.make(world).endings == (CLOSING, str(OUT_OF_SCOPE))
    assert envs.make("webshop").endings == ("click[Buy Now]",)


def test_in_the_shop_the_purchase_is_the_ending(tiny: Policy) -> None:
    """No candidate comes from another world, and what ends too soon is the probability of buying."""
    tasks = envs.make("webshop").tasks("train", 2)
    rollouts = [scripted_episode(tiny, t, rng(0, "test", t.index), WarmupConfig()).rollout for t in tasks]
    rollouts = [replace(r, turns=r.turns[:3]) for r in rollouts]
    tracks = [track(tiny, r) for r in rollouts]
    table, turns = measure(tiny, rollouts, tracks, {})
    assert all(mine.steps[-1] == "click[Buy Now]" for mine in tracks)
    assert (table["step"] > 0).all() and (table["ends"] == (table["step"] == table["n_steps"])).all()
    for turn in turns.to_dict("records"):
        mine = table[(table["rollout"] == turn["rollout"]) & (table["turn"] == turn["turn"])]
        bought = mine.loc[mine["step"] == mine["n_steps"], "mass"].item()
        assert turn["ending"] == pytest.approx(bought if turn["at_step"] != turn["n_steps"] else 0.0)


# --- demonstrations --------------------------------------------------------------------------------------------------
def test_variants_contain_what_they_say(tiny: Policy, task_id: str) -> None:
    demo = expert_run(tiny, "retail", task_id)
    actions = [t.action for t in demo.turns]
    at = list(range(len(actions)))
    assert vary(demo, "expert", at) == Told(demo)
    for kind, shown in {
        "local": lambda t: actions,
        "truncated": lambda t: actions[: t + 1],
        "next": lambda t: actions[t : t + 1],
    }.items():
        told = vary(demo, kind, at)
        assert told.run is None and len(told.texts) == len(at)
        for t, text in zip(at, told.texts, strict=True):
            assert [line.removeprefix("agent: ") for line in text.split("\n") if line.startswith("agent: ")] == shown(t)
    masked = demonstration_text(vary(demo, "masked", at).run)
    hidden = {name for turn in demo.turns for name in names(turn.action)}
    assert hidden and not any(name in masked for name in hidden) and "[id]" in masked
    shown = [envs.parse_action(t.action).name for t in vary(demo, "masked", at).run.turns]
    assert shown == [envs.parse_action(a).name for a in actions]


def test_where_a_demonstration_comes_from(tiny: Policy) -> None:
    ids = ["retail/train/0", "retail/train/1"]
    good = [expert_run(tiny, "retail", i) for i in ids]
    slow = scripted(tiny, ids[0], "get_order_details(order_id='#W1234')")
    assert slow.success
    rollouts = [good[0], slow, good[1]]
    tracks = [track(tiny, r) for r in rollouts]
    assert [told.run for told in demonstrated(rollouts, tracks, "sibling")] == [slow, good[0], None]
    assert demonstrated(rollouts, tracks, "sibling")[2].texts == (None,) * len(good[1].turns)
    other = [told.run.task_id for told in demonstrated(rollouts, tracks, "other_task")]
    assert other == [ids[1], ids[1], ids[0]]
    with pytest.raises(HeroError, match="two tasks or more"):
        demonstrated(rollouts[:2], tracks[:2], "other_task")
    with pytest.raises(HeroError, match="did you mean 'truncated'"):
        demonstrated(rollouts, tracks, "trunkated")


def test_a_rollout_never_reads_its_own_run(tiny: Policy, rollouts: list[Rollout], task_id: str) -> None:
    """Also if the agent sampled it, so that its log-probabilities are not the script's."""
    run = expert_run(tiny, "retail", task_id)
    turns = tuple(replace(t, logprobs=(-0.5,) * len(t.logprobs)) for t in run.turns)
    both = [replace(run, turns=turns), next(r for r in rollouts if r.task_id != task_id)]
    tracks = [track(tiny, r) for r in both]
    for kind in KINDS:
        mine, other = demonstrated(both, tracks, kind)
        assert (mine.run is None and mine.texts == (None,) * len(turns)) == (kind != "other_task"), kind
        assert kind == "sibling" or other.run is not None or None not in other.texts
    _, measured = measure(tiny, both, tracks, {"full_demo": demonstrated(both, tracks, "expert")})
    shown = measured[measured["context"] == "full_demo"]
    assert shown["rollout"].unique().tolist() == [1] and len(shown) == len(both[1].turns)


def test_all_teachers_have_names(tiny: Policy, rollouts: list[Rollout]) -> None:
    tracks = [track(tiny, r) for r in rollouts]
    teachers = all_teachers(rollouts, tracks, oracle(rollouts))
    assert set(KINDS) - {"expert"} < set(teachers) and {"hero", "shuffled_hero", "full_demo"} < set(teachers)
    assert all(len(told) == len(rollouts) for told in teachers.values())
