"""hero_mini: an educational reproduction of HERO, hindsight-enhanced self-distillation of language agents.

A map of the package; the method in the order to read it, the rest when it is needed.

The method
    models              the policy: a language model and its tokenizer
    envs.base, envs     the protocol of the environments, and the environments by name
    rollout             1  act
    reflect             2  a diagnosis per turn
    teacher             3  what the self-teacher reads, and its scores of the student's tokens
    losses, grpo        4  the distillation loss; the baseline's surrogate
    distil              3 and 4 for one update
    train, run          5  one loop for every arm; a run on disk, resumable
    config              arms, settings, presets, and all their defaults
What it stands on
    generate, cache     batched sampling over one key-value cache
    tree, attention     all turns of a rollout scored in one forward pass
    lora, parallel      the student as an adapter; several processes
    embedded, warmup    the default model, and the three skills it has been taught
    demos               where full demonstrations come from
    endpoint, server    models and rollouts behind a server
    errors, files       errors for people; whole-or-nothing files
    seeds, runtime      named generators; what is set before torch is loaded
What is measured
    evaluate            success, turns, and what is wasted, on held-out tasks
    bootstrap, compare  intervals; paired differences
    grading, probe      how good reflections are; whether a teacher prefers good actions
    told, track         variants of a teacher's text; where a student stands in a task
    mechanism, growth   where a teacher's probability falls, and what the student takes over
    traps               words that leak, quotes that anchor
    efficiency          success over the turns spent
    ability             what training costs elsewhere
    memory, bench       memory from a model's configuration; speed ratios
Studies and results
    study, studies      a list of runs, worked off; the lists
    engines, records    where runs are worked on; what is kept of them
    tables, results     a table with its provenance; the studies' tables as one
    paper, claims       what the paper reports; what was predicted, and what came out
    figures, figures_paper, figures_demo
    report              from figures/data to every figure and table
Pages and commands
    nb, viewer          what the notebooks share; a rollout as a conversation
    explore, live       one rollout to play with; a training to watch
    notebooks, handout  running the notebooks; copies without solutions
    site                all pages as one web site
    gym, to_trl         the environments in other libraries
    cli, commands       the command line

In envs: `tau` is shared by `retail` and `airline`, `webshop` stands by itself; *_tasks (or *_catalogue) make the tasks,
*_script has the expert, the bad habits and the oracle's judgement; `fidelity` and webshop_* hold a miniature against
the original; `tau2` and `webshop_real` are the real benchmarks; `worlds` are lists of tasks.
"""

from __future__ import annotations

from hero_mini.errors import HeroError
from hero_mini.runtime import keep_freed_memory, quiet_libraries

__version__ = "0.1.0"
__all__ = ["HeroError", "__version__"]

keep_freed_memory()
quiet_libraries()
