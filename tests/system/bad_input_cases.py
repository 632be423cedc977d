"""All mistakes that are tried, counted by kind; ``python tests/system/bad_input_cases.py`` prints the counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import bad_input_files as files
import bad_input_lists as lists
import bad_input_recipes as recipes
import bad_input_words as words

KINDS = {
    "unknown keys": recipes.UNKNOWN,
    "types": recipes.TYPES,
    "bounds": recipes.BOUNDS,
    "YAML": recipes.YAML,
    "contradictions": recipes.CONTRADICTIONS,
    "key=value and recipes' paths": recipes.OVERRIDES,
    "words and options": words.WORDS,
    "where to write": words.PLACES,
    "ranks": words.RANKS,
    "data sets, lists, pairs, results": files.DATA,
    "models, features, checkpoints": files.MODELS + files.CHECKPOINTS,
    "entries that leave their folder": lists.LEAVING,
    "protocols' meta files": lists.PROTOCOLS,
}
CASES = [replace(case, kind=kind) for kind, cases in KINDS.items() for case in cases]

if __name__ == "__main__":
    for kind, count in Counter(case.kind for case in CASES).items():
        print(f"{count:5}  {kind}")
    print(f"{len(CASES):5}  in all")
