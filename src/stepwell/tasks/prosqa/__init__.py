"""ProsQA: which of two concepts is the person one of? Data, generator, shortcut rules, tokenizer.

Format and statistics: Hao et al., "Training large language models to reason in a continuous latent space" (arXiv
2412.06769) and its repository `facebookresearch/coconut`.
"""

from __future__ import annotations

from stepwell.tasks.base import Task
from stepwell.tasks.prosqa.canonical import canonical, canonical_keys, disjoint_splits, same_up_to_renaming
from stepwell.tasks.prosqa.families import FAMILIES
from stepwell.tasks.prosqa.generator import generate_items, render
from stepwell.tasks.prosqa.graphs import GraphArrays, generate_graphs
from stepwell.tasks.prosqa.items import Item, chain_is_valid, load_items, write_items
from stepwell.tasks.prosqa.packing import pack
from stepwell.tasks.prosqa.shortcuts import RULES, RuleCount, Verdict, count_rules, judge
from stepwell.tasks.prosqa.words import CONCEPTS, PERSONS, WordTokenizer, names_of

PROSQA = Task(
    name="prosqa",
    families=tuple(FAMILIES),
    generate=generate_items,
    load=load_items,
    write=write_items,
    chain_is_valid=chain_is_valid,
)
"""ProsQA as a task."""

__all__ = [
    "CONCEPTS",
    "FAMILIES",
    "PERSONS",
    "PROSQA",
    "RULES",
    "GraphArrays",
    "Item",
    "RuleCount",
    "Verdict",
    "WordTokenizer",
    "canonical",
    "canonical_keys",
    "chain_is_valid",
    "count_rules",
    "disjoint_splits",
    "generate_graphs",
    "generate_items",
    "judge",
    "load_items",
    "names_of",
    "pack",
    "render",
    "same_up_to_renaming",
    "write_items",
]
