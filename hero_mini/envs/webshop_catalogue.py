"""Seeded generator of mini-WebShop tasks: a shop of 72 products, a wish in words, and near twins of the one that fits.

Every task has a shop of its own, as every retail task has a database of its own: an agent can learn how to shop but
cannot learn a shop by heart. Wishes (a kind of product with two attributes) and brands are dealt out by split, so no
goal and no product stands in two splits. All of this is our choice; the products of the real WebShop are scraped.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

from hero_mini.envs.base import SPLITS, Task, task_id
from hero_mini.seeds import rng

# the words of the shop: buttons and its one complaint, as in the real one
BACK, PREV, NEXT = "Back to Search", "< Prev", "Next >"
DESCRIPTION, FEATURES, BUY = "Description", "Features", "Buy Now"
INVALID = "Invalid action!"
PER_PAGE = 3  # results
SHOP_SIZE = 72  # products
N_VALUES = 3  # values that a product offers of each option


@dataclass(frozen=True)
class Shelf:
    """Kinds of products with the same possible attributes and options; prices in dollars, lowest and highest."""

    department: str
    name: str
    kinds: tuple[str, ...]
    attributes: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    prices: tuple[int, int]


COLORS = ("black", "white", "navy", "red", "green", "grey")
SHELVES = (
    Shelf(
        "clothing",
        "shoes",
        ("hiking boots", "running shoes", "sandals"),
        ("waterproof", "lightweight", "non-slip", "insulated", "vegan", "wide"),
        {"color": COLORS, "size": ("7", "8", "9", "10", "11")},
        (25, 90),
    ),
    Shelf(
        "clothing",
        "tops",
        ("rain jacket", "hoodie", "polo shirt"),
        ("windproof", "recycled", "stretch", "quick-dry", "slim", "warm"),
        {"color": COLORS, "size": ("small", "medium", "large", "x-large")},
        (15, 80),
    ),
    Shelf(
        "home",
        "kitchen",
        ("frying pan", "kettle", "lunch box"),
        ("nonstick", "insulated", "light", "leakproof", "oven-safe", "stackable"),
        {"color": COLORS, "size": ("small", "medium", "large", "x-large")},
        (10, 60),
    ),
    Shelf(
        "home",
        "bedding",
        ("pillow", "blanket", "bed sheet"),
        ("cooling", "soft", "organic", "washable", "thick", "hypoallergenic"),
        {"color": COLORS, "size": ("twin", "full", "queen", "king")},
        (15, 70),
    ),
    Shelf(
        "electronics",
        "audio",
        ("headphones", "speaker", "earbuds"),
        ("wireless", "waterproof", "foldable", "rugged", "slim", "loud"),
        {"color": COLORS, "cable": ("usb-a", "usb-c", "lightning", "aux")},
        (20, 120),
    ),
    Shelf(
        "electronics",
        "lights",
        ("desk lamp", "night light", "reading lamp"),
        ("dimmable", "foldable", "warm", "cordless", "clip-on", "bright"),
        {"color": COLORS, "plug": ("usb-c", "us", "uk", "eu")},
        (10, 60),
    ),
    Shelf(
        "beauty",
        "hair",
        ("shampoo", "conditioner", "hair mask"),
        ("vegan", "sulfate-free", "moisturizing", "gentle", "organic", "strengthening"),
        {"scent": ("lemon", "rose", "mint", "coconut", "vanilla"), "size": ("3 oz", "8 oz", "12 oz", "16 oz")},
        (5, 40),
    ),
    Shelf(
        "beauty",
        "skin",
        ("face cream", "body lotion", "sunscreen"),
        ("vegan", "oil-free", "gentle", "organic", "rich", "fast-absorbing"),
        {"scent": ("lemon", "rose", "mint", "coconut", "vanilla"), "size": ("2 oz", "4 oz", "6 oz", "10 oz")},
        (5, 50),
    ),
)
SHELF = {kind: shelf for shelf in SHELVES for kind in shelf.kinds}
BRANDS = (
    "Alba Birk Calo Dorn Elmo Fenn Gale Hark Ivo Jory Kite Lumo Moss Nord Orba Pine Quil Rove Sage Tarn Ulma Vela "
    "Wren Zeno"
).split()
UNCOUNTED = ("shampoo", "conditioner", "sunscreen")
WISHES = (
    "I need {what}, {options}, for at most ${limit}.",
    "Please buy me {what} with {options}. My limit is ${limit}.",
    "I am looking for {what}: {options}, price up to ${limit}.",
    "Find {what} with {options} for ${limit} or less.",
)
DEAR = (1.5, 3.0)  # a price over the limit, as a multiple of it
FAMILIES = {  # what it takes to find the product that fits
    "plain": 0.64,  # it is the first of the results
    "options": 0.12,  # a twin without the wanted option stands before it
    "page": 0.12,  # the whole first page is over the price
    "features": 0.12,  # it is the first, but its title hides one attribute, which only the Features page tells
}


@dataclass(frozen=True)
class Product:
    """One article. It has two attributes; `titled` are those that its title shows (both, or one)."""

    id: str
    brand: str
    kind: str
    price: int  # dollars
    attributes: tuple[str, ...]
    titled: tuple[str, ...]
    options: dict[str, tuple[str, ...]]

    @property
    def title(self) -> str:
        return " ".join((self.brand, *self.titled, self.kind))

    @property
    def description(self) -> str:
        return f"{self.kind.capitalize()} by {self.brand}, from our {SHELF[self.kind].name} shelf. Ships in two days."

    @property
    def text(self) -> str:
        """What the search engine reads: title, texts and options."""
        values = [value for values in self.options.values() for value in values]
        return " ".join((self.title, self.description, *self.attributes, *self.options, *values))


@dataclass(frozen=True)
class Goal:
    """What is wanted: the product has this kind and both attributes, the options are chosen, the price fits."""

    kind: str
    attributes: tuple[str, str]
    options: dict[str, str]
    limit: int  # dollars, the price itself is still fine


def path(kind: str) -> tuple[str, str, str]:
    """Department, shelf and kind.

    >>> path("kettle")
    ('home', 'kitchen', 'kettle')
    """
    return SHELF[kind].department, SHELF[kind].name, kind


def wishes(split: str) -> list[tuple[str, tuple[str, str]]]:
    """Every kind with two attributes that a split may ask for; the four splits share them out."""
    every = [(kind, pair) for kind in SHELF for pair in itertools.combinations(SHELF[kind].attributes, 2)]
    rng(0, "webshop", "wishes").shuffle(every)
    return every[SPLITS.index(split) :: len(SPLITS)]


def make_task(split: str, index: int, seed: int = 0) -> Task:
    """Task `index` of a split; no wish stands in two splits."""
    name = task_id("webshop", split, index, seed)
    draw = rng(seed, "webshop", split, index)
    family = draw.choices(list(FAMILIES), weights=list(FAMILIES.values()))[0]
    kind, pair = draw.choice(wishes(split))
    attributes = tuple(draw.sample(pair, 2))
    target = _product(draw, split, kind, attributes)
    limit = 10 * (target.price // 10 + draw.choice((1, 1, 2)))
    asked = draw.sample(list(target.options), 2)
    goal = Goal(kind, attributes, {name: draw.choice(target.options[name]) for name in sorted(asked)}, limit)
    shop = _twins(draw, split, family, target, goal)
    others = [k for k in SHELF if k != kind]
    while len(shop) < SHOP_SIZE:
        other = draw.choice(others)
        shop.append(_product(draw, split, other, tuple(draw.sample(SHELF[other].attributes, 2))))
    ids = draw.sample(range(10, 100), SHOP_SIZE)
    shop = [replace(product, id=f"B{number}") for product, number in zip(shop, ids, strict=True)]
    return Task(name, split, index, family, _wish(draw, goal), (), (), {"shop": tuple(shop), "goal": goal})


def _product(draw: random.Random, split: str, kind: str, attributes: tuple[str, ...]) -> Product:
    brands = BRANDS[SPLITS.index(split) :: len(SPLITS)]
    offered = {name: _some(draw, values) for name, values in SHELF[kind].options.items()}
    return Product("", draw.choice(brands), kind, draw.randint(*SHELF[kind].prices), attributes, attributes, offered)


def _some(draw: random.Random, values: tuple[str, ...]) -> tuple[str, ...]:
    """N_VALUES of an option's values, in their usual order."""
    return tuple(sorted(draw.sample(values, N_VALUES), key=values.index))


def _twins(draw: random.Random, split: str, family: str, target: Product, goal: Goal) -> list[Product]:
    """The target among products that differ from it in one respect; the search engine ranks equals in this order."""

    def twin(**changes) -> Product:
        fair = draw.randint(SHELF[goal.kind].prices[0], goal.limit)
        other = _product(draw, split, goal.kind, target.attributes)
        return replace(target, **{"brand": other.brand, "price": fair, **changes})

    def hidden(product: Product) -> Product:
        return replace(product, titled=goal.attributes[:1])

    dear = [twin(price=round(goal.limit * draw.uniform(*DEAR))) for _ in range(3 if family == "page" else 1)]
    name = draw.choice(list(goal.options))
    left = tuple(value for value in SHELF[goal.kind].options[name] if value != goal.options[name])
    unoffered = twin(options={**target.options, name: _some(draw, left)})
    others = [a for a in SHELF[goal.kind].attributes if a not in goal.attributes]
    unlike = []
    for kept, new in zip(goal.attributes, draw.sample(others, 2), strict=True):
        pair = (kept, new)
        unlike.append(twin(attributes=pair, titled=pair))
    if family == "features":
        target, unoffered, unlike[0], dear[0] = (hidden(product) for product in (target, unoffered, unlike[0], dear[0]))
    pair = [unoffered, target] if family == "options" else [target, unoffered]
    return [*dear, *pair, *unlike] if family == "page" else [*pair, *dear, *unlike]


def _wish(draw: random.Random, goal: Goal) -> str:
    """The goal in words; every word that matters stands in it literally."""
    first, second = goal.attributes
    plain = goal.kind.endswith("s") or goal.kind in UNCOUNTED

    def a(text: str) -> str:
        return text if plain else f"{'an' if text[0] in 'aeiou' else 'a'} {text}"

    what = draw.choice((a(f"{first} {second} {goal.kind}"), a(f"{first}, {second} {goal.kind}")))
    options = " and ".join(f"{name} {value}" for name, value in goal.options.items())
    return draw.choice(WISHES).format(what=what, options=options, limit=goal.limit)
