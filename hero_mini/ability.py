"""What training on a task costs elsewhere: short instructions with answers a program can check, and plain text.

The paper reports MMLU, MMLU-Pro and IFEval; at 135M parameters and on a laptop, this small set stands in (our choice).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from hero_mini.generate import complete
from hero_mini.models import Policy
from hero_mini.tree import Tree, logprobs

MAX_ANSWER = 64  # tokens


def says(*words: str) -> Callable[[str], bool]:
    """One of the words stands in the answer, as a whole word in any case."""
    return lambda answer: any(re.search(rf"\b{re.escape(w)}\b", answer, re.IGNORECASE) for w in words)


def _lines(n: int) -> Callable[[str], bool]:
    return lambda answer: len([line for line in answer.splitlines() if line.strip()]) == n


PROMPTS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (  # kind, instruction, check
    ("fact", "What is the capital of France?", says("Paris")),
    ("fact", "What is the capital of Japan?", says("Tokyo")),
    ("fact", "What is the capital of Italy?", says("Rome")),
    ("fact", "Which planet is known as the Red Planet?", says("Mars")),
    ("fact", "What is the largest ocean on Earth?", says("Pacific")),
    ("fact", "How many days are there in a week?", says("seven", "7")),
    ("fact", "How many legs does a spider have?", says("eight", "8")),
    ("fact", "What is the chemical formula of water?", says("H2O", "H₂O")),
    ("fact", "Who wrote the play Romeo and Juliet?", says("Shakespeare")),
    ("fact", "In which season does snow usually fall?", says("winter")),
    ("language", "What is the opposite of hot?", says("cold", "cool")),
    ("language", "What is the opposite of big?", says("small", "little", "tiny")),
    ("language", "What is the plural of the word mouse?", says("mice")),
    ("language", "What is the past tense of the verb go?", says("went")),
    ("language", "Name a word that rhymes with cat.", says("hat", "bat", "mat", "rat", "sat", "fat", "pat", "flat")),
    ("language", "Translate the Spanish word hola into English.", says("hello", "hi")),
    ("language", "Translate the French word merci into English.", says("thank", "thanks")),
    ("language", "Complete the saying: better late than", says("never")),
    ("reasoning", "What is 2 + 3?", says("5", "five")),
    ("reasoning", "What is 10 - 4?", says("6", "six")),
    ("reasoning", "What is 3 times 4?", says("12", "twelve")),
    ("reasoning", "What number comes after 19?", says("20", "twenty")),
    ("reasoning", "Which is larger, 8 or 15?", says("15", "fifteen")),
    ("reasoning", "Tom has 3 apples and buys 2 more. How many apples does he have?", says("5", "five")),
    ("reasoning", "Is a whale a fish or a mammal?", says("mammal")),
    ("reasoning", "Which day comes after Monday?", says("Tuesday")),
    ("format", "Write the word HELLO in lower case letters and nothing else.", lambda a: a.strip(" .\"'") == "hello"),
    ("format", "Answer with yes or no only: is ice cold?", lambda a: a.strip(" .!").lower() == "yes"),
    ("format", "Name three colors, each on a line of its own.", _lines(3)),
    ("format", "Name one animal, in one word.", lambda a: len(a.split()) == 1),
    ("format", "Write one sentence that ends with a question mark.", lambda a: a.strip().endswith("?")),
    ("format", "Repeat this word three times: apple", lambda a: len(re.findall(r"\bapple\b", a.lower())) == 3),
)

TEXTS = (  # written for this purpose
    "The bakery on the corner opens at six in the morning. By seven there is a line of people waiting for warm "
    "bread. The baker knows most of them by name, and she always asks about their families before she takes the "
    "money.",
    "A river carries sand and stones from the mountains to the sea. Where the water slows down, it drops what it "
    "can no longer carry, and over thousands of years a flat and fertile plain grows at its mouth.",
    "To change a tire, first park the car on level ground and set the brake. Loosen the nuts a little, lift the "
    "car, remove the nuts and the wheel, and put the spare wheel in its place.",
    "When the children heard the bell, they ran across the yard and lined up in front of the door. Their teacher "
    "counted them twice, because on the last trip one boy had fallen asleep on the bus.",
    "Most houses in the village are built of grey stone. Their roofs are steep, since the winters bring a lot of "
    "snow, and every garden has a low wall that keeps the sheep out.",
    "The library lends books for three weeks. Whoever needs more time can ask once for another three, unless "
    "somebody else is already waiting for the same book.",
    "Bees fly from flower to flower and collect a sweet juice. Back in the hive they turn it into honey, which "
    "feeds them through the cold months when nothing blooms.",
    "My grandfather repaired clocks for forty years. He used to say that a clock is like a person: it needs to be "
    "wound up now and then, and it hates to be rushed.",
    "Put the rice into cold water and wash it until the water stays clear. Then let it simmer in twice as much "
    "water, with the lid on, for about fifteen minutes.",
    "The first trains were slower than a good horse, and many people laughed at them. Twenty years later there was "
    "hardly a town of any size without a station.",
    "Salt was once so valuable that soldiers were paid with it. Whole cities grew rich because they lay on a road "
    "along which it was carried.",
    "She opened the letter slowly, although she had waited for it all week. There were only two lines in it, and "
    "she read them again and again until the light was gone.",
    "A good map shows less than what is there. Whoever draws it has to decide what a traveller needs to know, and "
    "leave out everything else.",
    "The moon takes about a month to travel around the Earth. Half of it is always lit by the sun, but we mostly "
    "see only a part of that half.",
    "If the lamp does not work, check the plug first and then the bulb. Only when both are fine is it worth looking"
    " at the cable, and that should be done by somebody who knows how.",
    "In the old harbour the fishermen mend their nets in the afternoon. The boats leave long before sunrise, so "
    "that the catch can be sold while it is still fresh.",
    "Our team lost the first three games of the season. Nobody gave up, though, and by the spring we had won as "
    "often as anybody else in the league.",
    "Glass is made of sand that has been heated until it melts. While it is hot it can be blown, poured or drawn "
    "into threads, and once it has cooled down it keeps its shape.",
    "The doctor told him to walk for half an hour every day. At first it bored him, but after a few weeks he "
    "noticed that he slept better and thought more clearly.",
    "Paper money has no value of its own. People accept it because they trust that others will accept it as well, "
    "and that trust can be lost in a very short time.",
    "A cat spends most of the day asleep. What looks like laziness is a way to save strength for the few minutes in"
    " which a hunter has to be faster than a mouse.",
    "The museum is closed on Mondays. On all other days it opens at ten, and the last visitors are asked to leave "
    "half an hour before the doors are locked.",
    "Mountains look as if they had always been there, but they rise and fall like everything else. Wind, ice and "
    "rain carry them away grain by grain.",
    "Before you sign a contract, read all of it, and ask about every word that you do not understand. Whoever is "
    "honest will be glad to explain it to you.",
)


def ability(policy: Policy) -> pd.DataFrame:
    """A row per instruction: kind, instruction, answer, right (0 or 1); greedy decoding, no system message."""
    prefixes = [policy.message("user", text) + policy.header() for _, text, _ in PROMPTS]
    answers = complete(policy, prefixes, max_tokens=MAX_ANSWER)
    return pd.DataFrame(
        [
            {"kind": kind, "instruction": text, "answer": answer, "right": float(check(answer))}
            for (kind, text, check), answer in zip(PROMPTS, answers, strict=True)
        ]
    )


def general_ability(policy: Policy) -> pd.DataFrame:
    """A row per instruction and passage: item, kind, correct (0 or 1; nan for a passage), perplexity (of a passage)."""
    told, read = ability(policy), plain_text_nll(policy)
    return pd.DataFrame(
        {
            "item": [*told["instruction"], *(text.split(".")[0] for text in TEXTS)],
            "kind": [*told["kind"], *["passage"] * len(read)],
            "correct": [*told["right"], *[float("nan")] * len(read)],
            "perplexity": [*[float("nan")] * len(told), *np.exp(read["nll"])],
        }
    )


def plain_text_nll(policy: Policy) -> pd.DataFrame:
    """A row per passage of plain text: tokens, and nats per token; exp of the latter is the perplexity."""
    encoded = [policy.encode(text) for text in TEXTS]
    trees = [Tree.chain([(ids[:1], False), (ids[1:], True)]) for ids in encoded]
    found = logprobs(policy, trees)
    return pd.DataFrame({"tokens": [len(lp[1]) for lp in found], "nll": [-lp[1].mean().item() for lp in found]})
