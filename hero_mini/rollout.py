"""Step 1: the policy acts. Batched multi-turn rollouts over one key-value cache; see `generate.converse` for the batch.

The sampled token ids and their log-probabilities are kept: training scores exactly these ids, never re-tokenised text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hero_mini import envs
from hero_mini.config import TEMPERATURE, TrainConfig
from hero_mini.envs import Env, Task
from hero_mini.envs.base import VERDICTS
from hero_mini.errors import HeroError, check_whole
from hero_mini.files import atomic_write
from hero_mini.generate import Dialogue, Sampling, Usage, converse
from hero_mini.models import Policy
from hero_mini.seeds import rng

if TYPE_CHECKING:
    from hero_mini.server import Server


@dataclass(frozen=True)
class Turn:
    """One action of the agent between what it had heard and what came back."""

    role: str  # who spoke before this action: "user" or "tool"
    observation: str  # what that speaker said
    action: str  # the agent's text, without its end of turn
    token_ids: tuple[int, ...]  # as sampled; the end of turn is the last one, unless the action was cut
    logprobs: tuple[float, ...]  # log pi of each token in nats, at temperature 1, of the policy that sampled it
    next_role: str
    next_observation: str  # the environment's answer
    info: dict[str, Any]  # the environment's facts about this step, see `envs.base`

    @property
    def necessary(self) -> bool:
        """Whether the environment's oracle calls the action necessary; all others are wasted."""
        return self.info["oracle"]["verdict"] == "necessary"


@dataclass(frozen=True)
class Rollout:
    """A finished episode."""

    env: str
    task_id: str
    seed: int
    system_prompt: str
    turns: tuple[Turn, ...]
    reward: float
    terminated: bool  # the environment came to its end
    truncated: bool  # it was broken off: out of turns, or context_full
    repeat: int = 0  # which of the rollouts of this task and seed
    context_full: bool = False  # another turn might not have fitted into the model's positions

    @property
    def success(self) -> bool:
        return self.reward == 1.0

    @property
    def actions(self) -> tuple[str, ...]:
        """What the agent said, turn by turn."""
        return tuple(turn.action for turn in self.turns)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Rollout:
        """raises ValueError, TypeError, LookupError, AttributeError or RecursionError: the line is not a rollout"""
        fields = json.loads(line)
        turns = []
        for turn in fields.pop("turns"):
            ids, logprobs = tuple(turn.pop("token_ids")), tuple(turn.pop("logprobs"))
            turns.append(Turn(**turn, token_ids=ids, logprobs=logprobs))
            texts = ("role", "observation", "action", "next_role", "next_observation")
            judged = turn["info"].get("oracle", {"verdict": VERDICTS[0]})  # others' environments may have no oracle
            if not all(isinstance(turn[name], str) for name in texts) or judged["verdict"] not in VERDICTS:
                raise ValueError("a turn is not whole")
            if extra := judged.keys() - {"verdict", "cause", "better"}:
                raise ValueError(f"a judgement says {extra}")
        if not turns:
            raise ValueError("an episode has a turn at least")
        if not isinstance(fields["env"], str) or not isinstance(fields["reward"], int | float):
            raise ValueError("no world, or no reward")
        return cls(**fields, turns=tuple(turns))


# --- the layout of a context, in token ids ---------------------------------------------------------------------------
def open_action(policy: Policy, role: str, observation: str) -> list[int]:
    """What stands between the end of one action and the next: someone speaks, and the agent is asked."""
    return policy.message(role, observation) + policy.header()


def close_action(policy: Policy, token_ids: Sequence[int]) -> list[int]:
    """What follows an action's own tokens before anyone else speaks: its end of turn if it was cut, a line break."""
    cut = not token_ids or token_ids[-1] != policy.eos_id
    return [policy.eos_id] * cut + policy.newline


def spells(policy: Policy, turn: Turn) -> bool:
    """Whether a turn's token ids are its action in the policy's own vocabulary."""
    try:
        known = all(0 <= i < len(policy.tokenizer) for i in turn.token_ids)
        return known and policy.decode(turn.token_ids) == turn.action
    except (TypeError, OverflowError, IndexError):  # ids that the tokenizer does not have
        return False


def pieces(policy: Policy, turn: Turn) -> list[str]:
    """The tokens of an action as text; stopping is a token, too."""
    return ["[end]" if token == policy.eos_id else policy.decode([token]) for token in turn.token_ids]


def segments(policy: Policy, rollout: Rollout) -> list[tuple[list[int], bool]]:
    """The whole context of a rollout as (token ids, is an action), alternating; the layout everything agrees on.

    system message | per turn: message, header | action | line break ... | line break, last observation
    """
    parts, between = [], policy.message("system", rollout.system_prompt)
    for turn in rollout.turns:
        parts.append((between + open_action(policy, turn.role, turn.observation), False))
        parts.append((list(turn.token_ids), True))
        between = close_action(policy, turn.token_ids)
    if rollout.turns:
        between = between + policy.message(rollout.turns[-1].next_role, rollout.turns[-1].next_observation)
    return [*parts, (between, False)]


# --- rolling out -----------------------------------------------------------------------------------------------------
def episode(
    policy: Policy, env: Env, task: Task, *, seed: int, repeat: int, max_turns: int, max_action_tokens: int
) -> Dialogue[Rollout]:
    """One episode as a dialogue: yields what the policy hears, is sent what it answers, returns the rollout."""
    observation, info = env.reset(seed=seed, options={"task": task})
    heard = policy.message("system", env.system_prompt) + open_action(policy, info["role"], observation)
    turns: list[Turn] = []
    most = max_action_tokens + len(close_action(policy, ()))  # of an action that is cut, with its end
    reward, length, terminated, truncated, context_full = 0.0, len(heard), False, False, False
    while not (terminated or truncated):
        answer = yield heard
        role, said, action = info["role"], observation, policy.decode(answer.ids)
        observation, gain, terminated, truncated, info = env.step(action)
        turns.append(Turn(role, said, action, answer.ids, answer.logprobs, info["role"], observation, info))
        reward += gain
        heard = close_action(policy, answer.ids) + open_action(policy, info["role"], observation)
        length += len(answer.ids) + len(heard)
        if not terminated:
            context_full = length + most > policy.context_length
            truncated = truncated or context_full or len(turns) >= max_turns
    return Rollout(
        env.name, task.id, seed, env.system_prompt, tuple(turns), reward, terminated, truncated, repeat, context_full
    )


def play(policy: Policy, env: Env, task: Task, act: Callable[[Env], str], *, seed: int = 0) -> Rollout:
    """One episode of a scripted agent as if the policy had sampled it (every log-probability is 0)."""
    observation, info = env.reset(seed=seed, options={"task": task})
    turns: list[Turn] = []
    reward, terminated, truncated = 0.0, False, False
    while not (terminated or truncated):
        role, said, action = info["role"], observation, act(env)
        observation, gain, terminated, truncated, info = env.step(action)
        ids = (*policy.encode(action), policy.eos_id)
        turns.append(Turn(role, said, action, ids, (0.0,) * len(ids), info["role"], observation, info))
        reward += gain
    return Rollout(env.name, task.id, seed, env.system_prompt, tuple(turns), reward, terminated, truncated)


def collect(
    policy: Policy,
    env: str | Callable[[], Env],
    tasks: Sequence[Task],
    *,
    seed: int,
    temperature: float = TEMPERATURE,
    top_p: float = 1.0,
    greedy: bool = False,
    max_turns: int | None = None,
    max_action_tokens: int = TrainConfig.max_action_tokens,
    batch_size: int = TrainConfig.batch_size,
    repeats: int = 1,
    usage: Usage | None = None,
    progress: bool = False,
    server: Server | None = None,
) -> list[Rollout]:
    """Roll out every task `repeats` times: all repeats of the first task, then of the second, and so on.

    env: a name, or a function that makes a fresh environment; one is made per episode
    max_turns: of an episode; None: as many as the environment allows by itself (see `envs.turn_limit`)
    server: who samples instead of this process
    raises HeroError: no tasks, an argument out of range, a context that does not fit into the model, or a server that
        gives no token ids
    """
    check_whole(0, seed=seed)
    seed = int(seed)  # one of NumPy's cannot be saved
    if max_turns is None:
        max_turns = envs.turn_limit(env) if isinstance(env, str) else env().max_turns
    check_whole(1, max_turns=max_turns, max_action_tokens=max_action_tokens, repeats=repeats)
    if not tasks:
        raise HeroError("there are no tasks to roll out; ask the environment for some with env.tasks(split, n)")
    if isinstance(tasks, Task):
        raise HeroError("tasks is a single Task; put it into a list")
    if wrong := [task for task in tasks if not isinstance(task, Task)]:
        raise HeroError(f"{wrong[0]!r} is no task; ask the environment for it with env.task_named(id)")
    sampling = Sampling(temperature, top_p, greedy, max_action_tokens)
    make = (lambda: envs.make(env, max_turns=max_turns)) if isinstance(env, str) else env
    prompt = policy.message("system", make().system_prompt)
    if len(prompt) + 2 * max_action_tokens > policy.context_length:
        raise HeroError(
            f"max_action_tokens is {max_action_tokens}: behind the prompt of {len(prompt)}, {policy.name}, which reads "
            f"{policy.context_length} at once, has no room for two such turns; set it lower, or take another model"
        )
    runs = [(task, repeat) for task in tasks for repeat in range(repeats)]
    return (server.converse if server else converse)(
        policy,
        [
            lambda task=task, repeat=repeat: episode(
                policy, make(), task, seed=seed, repeat=repeat, max_turns=max_turns, max_action_tokens=max_action_tokens
            )
            for task, repeat in runs
        ],
        [rng(seed, "rollout", task.id, repeat) for task, repeat in runs],
        shared=prompt,
        sampling=sampling,
        batch_size=batch_size,
        usage=usage,
        progress="episodes" if progress else "",
    )


# --- files -----------------------------------------------------------------------------------------------------------
def save_rollouts(path: str | Path, rollouts: Sequence[Rollout]) -> Path:
    """Write rollouts as JSON lines, the whole file or nothing."""
    return atomic_write(path, "".join(rollout.to_json() + "\n" for rollout in rollouts))


def load_rollouts(path: str | Path) -> list[Rollout]:
    """raises HeroError: no such file, or a line that is not a rollout"""
    try:
        lines = Path(path).read_bytes().split(b"\n")  # not splitlines: a text may hold other line breaks
    except OSError as problem:
        raise HeroError(f"the rollouts in {path} cannot be read ({problem.strerror}); check the path") from problem
    rollouts = []
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            break
        try:
            rollouts.append(Rollout.from_json(line.decode()))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as problem:
            raise HeroError(f"{path}, line {number}, is not a rollout: the file is damaged, collect again") from problem
    return rollouts
