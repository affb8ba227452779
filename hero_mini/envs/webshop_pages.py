"""The mini WebShop as a person sees it: every state as an HTML page, and an episode as a strip of pages.

Inline styles only and no script, so that a page looks the same in a notebook, on GitHub's viewer and in a file. Every
box sets its own background and text colour, so a dark notebook changes nothing. The agent reads `WebShop.show()`, which
says the same in fewer words.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hero_mini.envs.base import Action, Task, parse_action
from hero_mini.envs.webshop import WebShop, reward_parts, total
from hero_mini.envs.webshop_catalogue import BUY, SHELF, Product
from hero_mini.figures import VERDICT_STYLE

CARD = (
    "box-sizing:border-box;width:21em;min-height:29em;background:#ffffff;color:#1f2933;border:1px solid #cbd2d9;"
    "border-radius:8px;overflow:hidden;font:13px/1.45 system-ui,sans-serif;text-align:left"
)
BAR = "background:#22496b;color:#ffffff;padding:.45em .8em;font-weight:600"
WISH = "background:#eef4f8;color:#1f2933;padding:.5em .8em;border-bottom:1px solid #d9e2ec"
PILL = "display:inline-block;margin:.15em .3em .15em 0;padding:.1em .6em;border-radius:1em;border:1px solid {line}"
PLAIN, FILLED, BUYING = (
    PILL.format(line="#9aa5b1") + ";background:#f5f7fa;color:#1f2933",
    PILL.format(line="#22496b") + ";background:#22496b;color:#ffffff",
    PILL.format(line="#b7791f") + ";background:#f6c453;color:#1f2933;font-weight:600",
)
CAPTION = (
    "box-sizing:border-box;width:21em;margin-top:.4em;padding:.3em .7em;background:#ffffff;color:#1f2933;"
    "font:13px/1.45 system-ui,sans-serif;overflow-wrap:anywhere"
)
MARK = ";outline:3px solid #d55e00;outline-offset:1px"
TINT = {"clothing": "#dcebf7", "home": "#e3f1e4", "electronics": "#ece6f5", "beauty": "#fbe6ea"}
SWATCH = {
    "black": "#111111",
    "white": "#ffffff",
    "navy": "#1b2a5c",
    "red": "#c62828",
    "green": "#2e7d32",
    "grey": "#888888",
}


def page_html(env: WebShop, doing: str | None = None) -> str:
    """The page that the agent stands on. doing: the action taken next, marked in orange where it is on the page."""
    action = parse_action(doing or "")
    body = {"search": _search, "results": _results, "item": _item, "bought": _bought}.get(env.page, _texts)
    return (
        f"<div style='{CARD}'><div style='{BAR}'>mini WebShop</div>"
        f"<div style='{WISH}'><b>Wish:</b> {escape(env.task.instruction)}</div>"
        f"<div style='padding:.6em .8em'>{body(env, action)}</div></div>"
    )


def reads_html(observation: str, turn: int, max_turns: int) -> str:
    """What the agent reads, beside the page."""
    return (
        f"<div style='{CAPTION};border-left:.35em solid #888888;margin-left:1em'><b>the agent reads</b> "
        f"(turn {turn} of {max_turns})<br><code style='white-space:pre-wrap;background:none;color:#1f2933'>"
        f"{escape(observation)}</code></div>"
    )


def strip_html(task: Task, actions: Sequence[str]) -> str:
    """An episode replayed: the page before every action, the action with the oracle's verdict, and the last page."""
    env, cells = _start(task, actions), []
    for number, action in enumerate(actions, 1):
        page = page_html(env, action)
        observation, *_, info = env.step(action)
        color, sign = VERDICT_STYLE[info["oracle"]["verdict"]]
        note = f"<br>{escape(observation)}" if info["error"] else ""
        cells.append(
            f"<div>{page}<div style='{CAPTION};border-left:.35em solid {color}'>"
            f"<b>{number}</b> <code style='background:none;color:#1f2933'>{escape(action[:200])}</code>"
            f"<br>{sign} {escape(_verdict(info))}{note}</div></div>"
        )
    cells.append(f"<div>{page_html(env)}</div>")
    return f"<div style='display:flex;flex-wrap:wrap;gap:1.1em 1em;align-items:flex-start'>{''.join(cells)}</div>"


def strip_text(task: Task, actions: Sequence[str]) -> str:
    """The same as plain text, with the pages as the agent reads them."""
    env, lines = _start(task, actions), [task.instruction]
    for number, action in enumerate(actions, 1):
        observation, *_, info = env.step(action)
        lines += [f"{number} {action[:200]} = {_verdict(info)}", *(f"    {line}" for line in observation.splitlines())]
    return "\n".join(lines)


def expert_actions(task: Task) -> list[str]:
    """What the expert does in this task, as texts."""
    env, actions, done = _start(task), [], False
    while not done:
        actions.append(str(env.expert()))
        _, _, terminated, truncated, _ = env.step(actions[-1])
        done = terminated or truncated
    return actions


def _start(task: Task, actions: Sequence[str] = ()) -> WebShop:
    """A fresh episode with turns enough for these actions."""
    env = WebShop(max_turns=max(len(actions), WebShop().max_turns))
    env.reset(options={"task": task})
    return env


def _verdict(info: dict) -> str:
    return ", ".join(filter(None, (info["oracle"]["verdict"], info["oracle"]["cause"])))


# --- the bodies ------------------------------------------------------------------------------------------------------
def _thing(label: str, action: Action, style: str = PLAIN, before: str = "") -> str:
    """Something to click, marked if it is what the action clicks."""
    clicked = action.name == "click" and str(action.arguments.get("value")).strip().lower() == label.lower()
    return f"<span style='{style}{MARK * clicked}'>{before}{escape(label)}</span>"


def _buttons(env: WebShop, action: Action) -> str:
    rest = "".join(_thing(button, action) for button in env.buttons() if button != BUY)
    buy = _thing(BUY, action, BUYING) if BUY in env.buttons() else ""
    return f"<div style='margin-top:.7em'>{rest}</div><div>{buy}</div>"


def _picture(product: Product) -> str:
    """A tile in the colour of the department with the initials of the kind: there are no photographs here."""
    initials = "".join(word[0] for word in product.kind.split()).upper()
    style = (
        f"display:inline-block;width:2.4em;height:2.4em;line-height:2.4em;text-align:center;border-radius:6px;"
        f"background:{TINT[SHELF[product.kind].department]};color:#52606d;font-weight:600;flex:none"
    )
    return f"<span style='{style}'>{initials}</span>"


def _line(product: Product, name: str) -> str:
    return (
        f"<div style='display:flex;gap:.7em;align-items:center;margin:.3em 0'>{_picture(product)}<div>{name}<br>"
        f"{escape(product.title)} <b>${product.price}</b></div></div>"
    )


def _search(env: WebShop, action: Action) -> str:
    keywords = str(action.arguments.get("keywords", "")) if action.name == "search" else ""
    typed = escape(keywords[:200]) or "<span style='color:#52606d'>keywords</span>"
    box = "flex:1;border:1px solid #9aa5b1;border-radius:6px;padding:.25em .6em;min-width:0;overflow-wrap:anywhere"
    button = FILLED + MARK * bool(keywords)
    return (
        f"<div style='display:flex;gap:.5em;align-items:center;margin-top:2em'><div style='{box}'>{typed}</div>"
        f"<span style='{button}'>Search</span></div>"
    )


def _results(env: WebShop, action: Action) -> str:
    name = "color:#22496b;text-decoration:underline"
    lines = [_line(env.products[id], _thing(id, action, name)) for id in env.on_page()]
    head = f"Page {env.number + 1} of {env.n_pages()}, {len(env.results)} products found"
    return f"<div style='color:#52606d'>{head}</div>{''.join(lines)}{_buttons(env, action)}"


def _item(env: WebShop, action: Action) -> str:
    rows = []
    for name, values in env.item.options.items():
        pills = "".join(
            _thing(value, action, FILLED if env.chosen.get(name) == value else PLAIN, _swatch(value))
            for value in values
        )
        rows.append(f"<div style='margin:.3em 0'><b>{escape(name)}</b><br>{pills}</div>")
    return _line(env.item, escape(env.item.id)) + "".join(rows) + _buttons(env, action)


def _swatch(value: str) -> str:
    if value not in SWATCH:
        return ""
    style = "display:inline-block;width:.7em;height:.7em;border-radius:50%;border:1px solid #9aa5b1;margin-right:.35em"
    return f"<span style='{style};background:{SWATCH[value]}'></span>"


def _texts(env: WebShop, action: Action) -> str:
    if env.page == "description":
        text = escape(env.item.description)
    else:
        text = "".join(f"<li>{escape(attribute)}</li>" for attribute in env.item.attributes)
        text = f"<ul style='margin:.2em 0;padding-left:1.4em'>{text}</ul>"
    line = _line(env.item, escape(env.item.id))
    return f"{line}<div style='margin:.6em 0'><b>{env.page.capitalize()}</b><br>{text}</div>{_buttons(env, action)}"


def _bought(env: WebShop, action: Action) -> str:
    parts = reward_parts(env.goal, env.item, env.chosen)
    rows = {
        "kind of product": f"× {parts['type']:g}",
        "attributes": f"{parts['attributes']:g} of {len(env.goal.attributes)}",
        "options": f"{parts['options']:g} of {len(env.goal.options)}",
        "price within the limit": "yes" if parts["price"] else "no",
    }
    lines = "".join(
        f"<div style='display:flex;justify-content:space-between'><span>{name}</span><b>{value}</b></div>"
        for name, value in rows.items()
    )
    chosen = ", ".join(f"{name} {value}" for name, value in env.chosen.items()) or "no option chosen"
    return (
        f"<div style='font-weight:600'>Thank you for shopping with us!</div>{_line(env.item, escape(env.item.id))}"
        f"<div>{escape(chosen)}</div><hr style='border:0;border-top:1px solid #d9e2ec;margin:.6em 0'>{lines}"
        f"<div style='margin-top:.6em;font-size:1.25em;font-weight:700'>Your score: {total(parts):.2f}</div>"
    )
