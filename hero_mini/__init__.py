"""hero_mini: an educational reproduction of HERO, hindsight-enhanced self-distillation of language agents."""

from __future__ import annotations

from hero_mini.runtime import HeroError, keep_freed_memory, quiet_libraries

__version__ = "0.1.0"
__all__ = ["HeroError", "__version__"]

keep_freed_memory()
quiet_libraries()
