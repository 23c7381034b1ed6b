"""The data audit: clean on clean data, and every planted fault found with its exact count and items."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from stepwell.audit.checks import CODES, promised_hops
from stepwell.audit.data import FileAudit, audit_files, audit_items
from stepwell.errors import StepwellError
from stepwell.tasks.prosqa import FAMILIES, count_rules, generate_items, write_items

Entry = dict[str, Any]
N = 60
PLANTED = (4, 9, 33)
TEXT = ("question", "answer", "steps")


def entries(family: str = "id", n: int = N, seed: int = 11) -> list[Entry]:
    return [item.to_json() for item in generate_items(family, n, seed)]


def audit(folder, found: list[Entry], name: str = "data.json") -> FileAudit:
    (folder / name).write_text(json.dumps(found))
    return audit_files([folder / name])[0]


def counts(result: FileAudit) -> dict[str, int]:
    return {finding.code: finding.count for finding in result.findings}


def facts(entry: Entry) -> list[str]:
    return [f"{part}." for part in entry["question"].split(" Is ")[0].removesuffix(".").split(". ")]


def retold(entry: Entry, told: list[str]) -> Entry:
    """The entry with other facts, as text alone."""
    question = " ".join(told) + " Is " + entry["question"].split(" Is ")[1]
    return {"question": question, "answer": entry["answer"], "steps": entry["steps"]}


def symbol(entry: Entry, role: str) -> str:
    return entry["idx_to_symbol"][entry[role]]


def unlink_person(entry: Entry) -> Entry:
    root = symbol(entry, "root")
    return retold(entry, [fact for fact in facts(entry) if not fact.startswith(f"{root} ")])


def reach_negative(entry: Entry) -> Entry:
    return retold(entry, [*facts(entry), f"{symbol(entry, 'root')} is a {symbol(entry, 'neg_target')}."])


def close_cycle(entry: Entry) -> Entry:
    """The first step's concept from the last but one: a cycle on the way, the options untouched."""
    first, last = entry["steps"][0].split()[-1], entry["steps"][-1].split()[1]
    return retold(entry, [*facts(entry), f"Every {last} is a {first}"])


def add_fact_of_option(entry: Entry) -> Entry:
    leaf = next(
        node
        for node in range(len(entry["idx_to_symbol"]) - 1, 0, -1)
        if node not in (entry["target"], entry["neg_target"]) and all(edge[0] != node for edge in entry["edges"])
    )
    return retold(entry, [*facts(entry), f"Every {symbol(entry, 'target')} is a {entry['idx_to_symbol'][leaf]}."])


def lengthen_steps(entry: Entry) -> Entry:
    return {**entry, "steps": [entry["steps"][0], *entry["steps"]]}


def untold_step(entry: Entry) -> Entry:
    """The first two steps in one, which no fact says."""
    root, second = symbol(entry, "root"), entry["steps"][1].split()[-1]
    return {**entry, "steps": [f"{root} is a {second}", *entry["steps"][2:]]}


def swap_steps(entry: Entry) -> Entry:
    return {**entry, "steps": [entry["steps"][1], entry["steps"][0], *entry["steps"][2:]]}


def other_answer(entry: Entry) -> Entry:
    return {**entry, "answer": f"{symbol(entry, 'root')} is a hero."}


def second_article(entry: Entry) -> Entry:
    return {**entry, "question": entry["question"].replace(" or ", " or a ")}


def stray_sentence(entry: Entry) -> Entry:
    return {**entry, "question": f"All is well. {entry['question']}"}


def with_name(old: Callable[[Entry], str], new: str) -> Callable[[Entry], Entry]:
    """The entry with one name exchanged everywhere: sound but for that name."""

    def fault(entry: Entry) -> Entry:
        return json.loads(re.sub(rf"\b{old(entry)}\b", new, json.dumps(entry)))

    return fault


def cut_short(entry: Entry) -> Entry:
    """The root is told to be what it was two hops from its target: a sound question, of two hops."""
    last = entry["steps"][-1]
    link = f"{symbol(entry, 'root')} is a {last.split()[1]}."
    return {**retold(entry, [*facts(entry), link]), "steps": [link, last]}


def no_choice(entry: Entry) -> Entry:
    return {**entry, "question": entry["question"].rsplit(" or ", 1)[0] + "?"}


def other_edges(entry: Entry) -> Entry:
    return {**entry, "edges": entry["edges"][:-1]}


def other_root(entry: Entry) -> Entry:
    return {**entry, "root": 1 - entry["root"]}


def swapped_targets(entry: Entry) -> Entry:
    return {**entry, "target": entry["neg_target"], "neg_target": entry["target"]}


def bad_index(entry: Entry) -> Entry:
    return {**entry, "target": 77}


def without(*names: str) -> Callable[[Entry], Entry]:
    return lambda entry: {key: value for key, value in entry.items() if key not in names}


def untyped_steps(entry: Entry) -> Entry:
    return {**entry, "steps": "Tom is a dumpus."}


FAULTS: list[tuple[Callable[[Entry], Entry], dict[str, int]]] = [
    (unlink_person, {"root-without-facts": 3, "target-unreachable": 3, "step-not-a-fact": 3}),
    (reach_negative, {"negative-reachable": 3}),
    (close_cycle, {"cyclic": 3}),
    (add_fact_of_option, {"option-not-leaf": 3}),
    (lengthen_steps, {"hops-mismatch": 3, "chain-invalid": 3}),
    (untold_step, {"hops-mismatch": 3, "step-not-a-fact": 3}),
    (swap_steps, {"chain-invalid": 3}),
    (other_answer, {"answer-not-an-option": 3}),
    (second_article, {"template-differs": 3}),
    (stray_sentence, {"template-differs": 3}),
    (no_choice, {"template-differs": 3}),
    (with_name(lambda entry: symbol(entry, "root"), "Zebedee"), {"unknown-name": 3}),
    (with_name(lambda entry: symbol(entry, "target"), "hero"), {"unknown-name": 3}),
    (with_name(lambda entry: entry["steps"][0].split()[-1].rstrip("."), "somepus"), {"unknown-name": 3}),
    (cut_short, {"hops-out-of-range": 3}),
    (other_edges, {"graph-differs-from-text": 3}),
    (other_root, {"graph-differs-from-text": 3}),
    (swapped_targets, {"graph-differs-from-text": 3}),
    (bad_index, {"graph-differs-from-text": 3}),
    (without("steps"), {"missing-field": 3}),
    (without("question", "root"), {"missing-field": 3}),
    (without("root"), {"missing-field": 3}),
    (untyped_steps, {"missing-field": 3}),
]


@pytest.mark.parametrize(("fault", "expected"), FAULTS)
def test_each_planted_fault_is_found_and_nothing_else(fault, expected, tmp_path):
    found = entries()
    for place in PLANTED:
        found[place] = fault(found[place])
    result = audit(tmp_path, found)
    assert counts(result) == expected
    assert not result.ok and result.n == N
    for finding in result.findings:
        assert finding.of == N
        assert finding.items == tuple(f"data-{place:05d}" for place in PLANTED)
        assert finding.example.startswith("data-00004: ")


def test_every_code_has_a_planted_fault():
    planted = {code for _, expected in FAULTS for code in expected}
    assert planted | {"duplicate-item", "split-overlap"} == set(CODES)


def test_official_validation_set_is_clean(shared_data):
    result = audit_files([shared_data("prosqa/valid.json")])[0]
    assert result.ok and result.n == 300 and result.findings == ()
    scores = {score.rule: score for score in result.shortcuts}
    rule = scores["another-person"]
    assert rule.value == pytest.approx(0.957, abs=0.0005) and rule.n == 300
    assert rule.low is not None and rule.high is not None and rule.low < 0.946 < rule.high


def test_rules_are_counted_by_hops_and_the_counts_add_up():
    items = generate_items("id", 60, seed=4)
    for score in audit_items("id", items).shortcuts:
        assert [(hops, n) for hops, _, n in score.by_hops] == sorted(Counter(item.hops for item in items).items())
        assert score.n == 60 and score.correct == sum(correct for _, correct, _ in score.by_hops)
        for hops, correct, _ in score.by_hops:
            (alone,) = [c for c in count_rules([i for i in items if i.hops == hops]) if c.rule == score.rule]
            assert alone.correct == correct


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_items_are_clean_with_and_without_graph_fields(family, tmp_path):
    items = generate_items(family, 200 if family != "mini" else 40, seed=2)
    assert audit_items(f"{family}", items).ok
    bare = [{key: item.to_json()[key] for key in TEXT} for item in items]
    assert audit(tmp_path, bare, f"{family}.json").ok


def test_broken_sets_of_the_earlier_study_are_seen_through(tmp_path):
    """Four sets as they were: the person never linked, the negative reachable in some, cycles, 8 steps for 7 hops."""
    found = []
    for place, entry in enumerate(entries("8hop", 40)):
        entry = second_article(unlink_person(entry))
        if place < 15:
            entry = retold(entry, [*facts(entry), f"{entry['answer'].split()[0]} is a {negative(entry)}."])
        if place >= 20:
            entry = close_cycle(entry)
        found.append(second_article(entry) if " or a " not in entry["question"] else entry)
    assert counts(audit(tmp_path, found, "ood_7hop.json")) == {
        "template-differs": 40,
        "root-without-facts": 25,
        "target-unreachable": 40,
        "negative-reachable": 15,
        "cyclic": 20,
        "hops-mismatch": 40,
        "step-not-a-fact": 40,
    }


def negative(entry: Entry) -> str:
    tail = entry["question"].split(" Is ")[1].rstrip("?").split(" a ", 1)[1]
    right = entry["answer"].split()[-1].rstrip(".")
    return next(option for option in tail.replace(" or a ", " or ").split(" or ") if option != right)


def test_a_name_promises_hops(tmp_path):
    found = entries("8hop", 10)
    assert counts(audit(tmp_path, found, "ood_7hop.json")) == {"hops-mismatch": 10}
    assert audit(tmp_path, found, "test-8hop-b.json").ok
    assert counts(audit(tmp_path, found, "plain.json")) == {"hops-out-of-range": 10}
    assert [promised_hops(name) for name in ("7hop", "ood_8_hops", "shop", "17hopeful", "12-hop")] == [
        7, 8, None, None, 12,
    ]  # fmt: skip


def test_hops_are_judged_by_name_family_or_the_official_range(tmp_path):
    long = [*entries(n=20), *entries("7hop", 20)]
    (finding,) = audit(tmp_path, long, "train.json").findings
    assert (finding.code, finding.count) == ("hops-out-of-range", 20)
    assert finding.example == "train-00020: 7 hops, 3 to 6 expected"
    short = entries("mini", 30)
    two = sum(len(entry["steps"]) == 2 for entry in short)
    assert 0 < two < 30 and counts(audit(tmp_path, short, "train.json")) == {"hops-out-of-range": two}
    assert audit(tmp_path, short, "mini-b.json").ok
    assert audit_files([tmp_path / "train.json"], ["mini"])[0].ok, "said by the family, not by the file"
    assert counts(audit(tmp_path, entries(n=20), "mini.json")).keys() == {"hops-out-of-range"}
    for name in ("test-swapped.json", "7hop-swapped.json"):
        assert audit(tmp_path, [cut_short(entry) for entry in entries(n=20)], name).ok


def test_duplicates_are_found_whatever_the_order_of_facts_and_options(tmp_path):
    found = entries()
    again = dict(found[3])
    told = facts(again)
    random.Random(0).shuffle(told)
    root = symbol(again, "root")
    again["question"] = f"{' '.join(told)} Is {root} a {symbol(again, 'neg_target')} or {symbol(again, 'target')}?"
    result = audit(tmp_path, [*found, found[3], again])
    assert counts(result) == {"duplicate-item": 2}
    assert result.findings[0].items == ("data-00060", "data-00061")
    assert result.findings[0].example == "data-00060: same as data-00003"


def test_overlap_between_files_is_found_word_for_word_and_up_to_renaming(tmp_path):
    train, valid = entries(seed=1), entries(seed=2, n=20)
    valid[4] = train[7]
    valid[5] = json.loads(renamed(json.dumps(train[8]), train[8]["idx_to_symbol"]))
    for name, found in (("train", train), ("valid", valid)):
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    first, second = audit_files([tmp_path / "train.json", tmp_path / "valid.json"])
    assert [finding.items for finding in first.findings] == [("train-00007", "train-00008")]
    assert counts(first) == counts(second) == {"split-overlap": 2}
    assert first.findings[0].example == "train-00007: word for word valid-00004"
    assert second.findings[0].items == ("valid-00004", "valid-00005")
    assert audit_files([tmp_path / "valid.json"])[0].ok


def renamed(text: str, symbols: list[str]) -> str:
    """Names turned round by one, persons among persons and concepts among concepts."""
    swaps = {}
    for group in ([s for s in symbols if s[0].isupper()], [s for s in symbols if not s[0].isupper()]):
        swaps |= dict(zip(group, group[1:] + group[:1], strict=True))
    for old, new in swaps.items():
        for end in '". ?':
            for start in '" ':
                text = text.replace(f"{start}{old}{end}", f"{start}#{new}#{end}")
    return text.replace("#", "")


def test_json_has_the_documented_shape(tmp_path):
    found = entries()
    found[4] = second_article(found[4])
    shown = json.loads(json.dumps(audit(tmp_path, found).to_json()))
    assert set(shown) == {"file", "n", "ok", "findings", "shortcuts"}
    assert shown["ok"] is False and shown["n"] == N and shown["file"].endswith("data.json")
    (finding,) = shown["findings"]
    assert set(finding) == {"code", "count", "of", "items", "example"} and finding["items"] == ["data-00004"]
    assert shown["shortcuts"][0]["rule"] == "another-person"
    assert all(set(score) == {"rule", "value", "low", "high", "n"} for score in shown["shortcuts"])


def test_where_no_item_can_be_judged_scores_are_undefined(tmp_path):
    score = audit(tmp_path, [{"question": "Why?", "answer": "So.", "steps": []}]).shortcuts[0]
    assert (score.value, score.low, score.high, score.n) == (None, None, None, 0)


@pytest.mark.parametrize(
    ("content", "message"), [("", "the file is empty"), ("{", "not JSON"), ("{}", "another format: one dict")]
)
def test_files_that_hold_no_items_are_errors(content, message, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(StepwellError, match=message):
        audit_files([tmp_path / "x.json"])
    with pytest.raises(StepwellError, match="there is no such file"):
        audit_files([tmp_path / "none.json"])


def test_a_training_set_of_official_size_takes_seconds(tmp_path):
    """17,886 items in under 10 s of processor time."""
    write_items(tmp_path / "train.json", generate_items("id", 17_886, seed=5))
    start = time.process_time()
    result = audit_files([tmp_path / "train.json"])[0]
    assert time.process_time() - start < 10
    assert result.ok and result.n == 17_886
