"""Environments in TRL: the tools it finds, the schemas it shows, the answers, the reward, and one GRPO step."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import get_json_schema
from worlds import episode, expert, tasks

from hero_mini import envs
from hero_mini.envs import airline, retail
from hero_mini.envs.base import parse_action
from hero_mini.errors import HeroError
from hero_mini.models import Policy
from hero_mini.to_trl import TrlEnv, rows, to_trl

TOOLS = {
    "retail": {*retail.TOOLS, "respond"},
    "airline": {*airline.TOOLS, "respond"},
    "webshop": {"search", "click"},
}
every_world = pytest.mark.parametrize("name", TOOLS)


def tools(env: TrlEnv) -> dict[str, Callable[..., str]]:
    """What TRL's GRPOTrainer takes for tools: all public methods, less the two that it knows itself."""
    methods = inspect.getmembers(env, inspect.ismethod)  # later versions look at the class, which finds fewer
    return {name: method for name, method in methods if name[0] != "_" and name not in ("reset", "get_reward")}


def take(env: TrlEnv, action: str) -> str:
    """Call the tool that an action in any spelling names."""
    parsed = parse_action(action)
    return tools(env)[parsed.name](**parsed.arguments)


@every_world
def test_tools_and_schemas_are_the_environments_own(name: str) -> None:
    env = to_trl(name)()
    assert tools(env).keys() == TOOLS[name]
    for tool, method in tools(env).items():
        schema = get_json_schema(method)["function"]
        wanted = schema["parameters"]
        signature = envs.make(name).signatures()[tool].parameters
        assert (schema["name"], schema["return"]["type"]) == (tool, "string")
        assert wanted["required"] == list(wanted["properties"]) == list(signature)
        assert all(argument["description"] for argument in wanted["properties"].values()) and schema["description"]


def test_types() -> None:
    def properties(name: str, tool: str) -> dict[str, str | None]:
        schema = get_json_schema(tools(to_trl(name)())[tool])["function"]["parameters"]["properties"]
        return {key: (value["type"], value.get("items", {}).get("type")) for key, value in schema.items()}

    assert properties("retail", "return_delivered_order_items")["item_ids"] == ("array", "string")
    assert properties("airline", "send_certificate") == {"user_id": ("string", None), "amount": ("integer", None)}


@pytest.mark.parametrize("name", ["tau2-retail", "tau2-airline"])
def test_the_real_benchmark_keeps_its_signatures(name: str) -> None:
    try:
        env = to_trl(name)()
    except HeroError as problem:
        pytest.skip(str(problem))
    schemas = {tool: get_json_schema(method)["function"]["parameters"] for tool, method in tools(env).items()}
    assert len(schemas) >= 15 and "respond" in schemas
    theirs = {tool["name"]: tool["parameters"] for tool in _upstream_schemas(name)}
    assert theirs.keys() == schemas.keys() - {"respond"}
    for tool, schema in theirs.items():
        assert schemas[tool].get("required", []) == schema.get("required", [])
        assert schemas[tool]["properties"].keys() == schema["properties"].keys()
    assert env.reset(**rows(name, "train", 1)[0]) and env.respond(content="Who are you? Your name and email?")


def _upstream_schemas(name: str) -> list[dict]:
    """The real benchmark's own schemas, which stand in its system prompt, a line each."""
    prompt = rows(name, "train", 1)[0]["prompt"][0]["content"]
    lines = prompt.split("\nTools:\n")[1].splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@every_world
def test_the_same_episode_as_without_trl(name: str) -> None:
    env = to_trl(name)()
    for task in tasks(name, 5, "test"):  # one instance for all of them, as TRL does
        opener, steps, _ = episode(task, expert)
        assert env.reset(prompt=[], task=task.id) == opener
        for action, observation, *_ in steps:
            assert env.get_reward() == 0.0
            assert take(env, action) == observation
        assert env.get_reward() == steps[-1][2] == 1.0
        with pytest.raises(HeroError, match="^the episode is over$"):
            take(env, steps[0][0])
        assert env.get_reward() == 1.0


def test_instances_are_independent_and_settings_count() -> None:
    Retail = to_trl("retail", max_turns=2)
    first, second = Retail(), Retail()
    row = rows("retail", "train", 1)[0]
    first.reset(**row)
    second.reset(**row)
    assert first.respond(content="Hello?") == second.respond(content="Hello?")
    first.respond(content="Hello?")
    with pytest.raises(HeroError, match="over"):  # out of turns
        first.respond(content="Hello?")
    assert first.get_reward() == 0.0 and second.respond(content="Hello?")


def test_wrong_arguments_get_the_environments_own_answer() -> None:
    env = to_trl("retail")()
    env.reset(task="retail/test/0")
    assert env.get_order_details() == "Error: get_order_details needs the argument order_id"
    assert env.get_order_details(self="x", order_id="y").startswith("Error: get_order_details got an unexpected")
    assert env.get_order_details(order_id=["x"]) == "Error: the argument order_id has the wrong type"


@every_world
def test_rows(name: str) -> None:
    made = rows(name, "train", 3, seed=2)
    assert [row["task"] for row in made] == [task.id for task in tasks(name, 3, "train", 2)]
    assert [m["role"] for m in made[0]["prompt"]] == ["system", "user"]
    assert made[0]["prompt"][0]["content"] == envs.make(name).system_prompt


def test_an_environment_class_will_do() -> None:
    class Shop(envs.ENVS["webshop"]):
        name = "corner-shop"

    assert to_trl(Shop, strict_upstream=True).__name__ == "CornerShop"
    assert to_trl(Shop)().reset(task=tasks("webshop", 1)[0].id.replace("webshop", "corner-shop"))


def test_errors_name_the_remedy() -> None:
    Retail = to_trl("retail")
    for call, near in {
        lambda: to_trl("retial"): "did you mean 'retail'",
        lambda: Retail().reset(prompt=[]): r"no task; make the data set from rows\('retail'",
        lambda: Retail().reset(task="retail/tset/0"): "did you mean 'test'",
        lambda: Retail().respond(content="hi"): "over",
        lambda: rows("retail", "trian", 1): "did you mean 'train'",
    }.items():
        with pytest.raises(HeroError, match=near):
            call()


class Actor(LlamaForCausalLM):
    """A tiny model whose first row plays the expert's run of one task; the other says 16 tokens that it samples."""

    run: list[str]
    tokenizer: PreTrainedTokenizerFast

    def generate(self, input_ids: torch.Tensor, **settings) -> torch.Tensor:
        turn = self.tokenizer.decode(input_ids[0]).count("<tool_response>")
        text = self.run[turn] if turn < len(self.run) else "Done."
        said = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]
        if turn:
            return torch.cat([input_ids, torch.tensor([said])], dim=1)
        sampled = super().generate(input_ids, **settings | {"max_new_tokens": 16, "min_new_tokens": 16})
        padded = torch.full((2, input_ids.shape[1] + len(said)), self.tokenizer.pad_token_id)
        padded[0] = torch.cat([input_ids[0], torch.tensor(said)])
        padded[1, : sampled.shape[1]] = sampled[1]
        return padded


def as_tool_call(action: str) -> str:
    parsed = parse_action(action)
    return f"<tool_call>\n{json.dumps({'name': parsed.name, 'arguments': parsed.arguments})}\n</tool_call>"


@pytest.mark.filterwarnings("ignore")
def test_one_grpo_step_of_trl(tiny: Policy, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rollout solves the task, the other babbles: rewards 1 and 0, and the model moves."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from trl.chat_template_utils import qwen3_chat_template

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer = copy.deepcopy(tiny.tokenizer)  # TRL writes into it
    tokenizer.chat_template = qwen3_chat_template
    model = Actor(tiny.model.config)
    model.set_attn_implementation("sdpa")
    model.load_state_dict(tiny.model.state_dict())
    model.tokenizer = tokenizer
    task = tasks("retail", 1)[0]
    model.run = [as_tool_call(action) for action, *_ in episode(task, expert)[1]]
    before = model.lm_head.weight.detach().clone()
    seen = []

    def successes(environments: list[TrlEnv], **_) -> list[float]:
        seen.append([env.get_reward() for env in environments])
        return [0.0] * len(environments)

    Retail = to_trl("retail")
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=successes,
        environment_factory=Retail,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows("retail", "train", 1)),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            num_generations=2,
            per_device_train_batch_size=2,
            max_completion_length=3000,
            learning_rate=0.01,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert seen == [[1.0, 0.0]]
    assert log["rewards/Retail/mean"] == log["reward"] == 0.5
    assert log["tools/failure_frequency"] == 0
    assert log["tools/call_frequency"] == len(model.run) / 2
    assert log["grad_norm"] > 0 and not torch.equal(model.lm_head.weight, before)
