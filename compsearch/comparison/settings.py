"""Configurations of several runs set side by side: which settings differ, and how people write them.

A setting that a configuration doesn't have (it is of an earlier version, or its node is of another class) makes no
difference. A node with `_target_` is a setting too: its value is the word that chooses it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from compsearch.comparison.options import option_word, searcher_word

#: Dotted keys to values. Below a node with `_target_` a key names the node's word too, in ``<…>``: what is called the
#: same in different classes is not the same setting.
Flat = Mapping[str, Any]

_WORD = re.compile(r"<[^>]*>")
_MOST_NAMED = 2
_LONGEST_VALUE = 24
#: A search's number of trials, and what conf/searcher makes of it.
_TRIALS = ("searcher.num_steps", "searcher.num_trials")
_FROM_TRIALS = frozenset({"warmup_episodes", "noise_decay", "population_size", "sample_size"})


def flatten(config: Mapping[str, Any], *, ignore: Collection[str] = ()) -> dict[str, Any]:
    """The settings of `config`; `ignore` names dotted keys that are left out with everything below them."""
    flat: dict[str, Any] = {}
    _flatten(config, "", frozenset(ignore), flat, config)
    return flat


def plain_key(key: str) -> str:
    """`key` as it is typed: without the words of nodes."""
    return _WORD.sub("", key)


def differing(flats: Sequence[Flat]) -> list[str]:
    """The keys that have more than one value among `flats`, in the order met."""
    values: dict[str, set[str]] = {}
    for flat in flats:
        for key, value in flat.items():
            values.setdefault(key, set()).add(_canonical(value))
    return [key for key, found in values.items() if len(found) > 1]


def columns_that_differ(flats: Sequence[Flat]) -> dict[str, list[Any]]:
    """The keys that differ among `flats`, each with its values: the most common one for those that don't have it.

    Of keys that always have the same value only one is there, and none that follows from the number of trials.
    """
    columns = {key: _filled([flat.get(key, _ABSENT) for flat in flats]) for key in differing(flats)}
    return {key: columns[key] for key in _independent(columns, columns)}


def difference_labels(flats: Sequence[Flat]) -> list[str]:
    """For each of `flats` what sets it apart from the most common one, ``recover=bn, divisor=1``; "" for that one.

    At most two settings are named, unless it takes more to tell two of `flats` apart; "…" stands for the others.
    """
    columns = columns_that_differ(flats)
    keys = list(columns)
    signatures = [tuple(_canonical(columns[key][index]) for key in keys) for index in range(len(flats))]
    if not signatures:
        return []
    usual = Counter(signatures).most_common(1)[0][0]  # of equals the first
    every = set().union(*(map(plain_key, flat) for flat in flats))
    named = {
        signature: [
            f"{_short(plain_key(key), every)}={_shown(columns[key][signatures.index(signature)])}"
            for key, own, common in zip(keys, signature, usual, strict=True)
            if own != common
        ]
        for signature in dict.fromkeys(signatures)
    }
    labels = {signature: _joined(parts, _MOST_NAMED) for signature, parts in named.items()}
    clashes = {label for label, count in Counter(labels.values()).items() if count > 1}
    labels |= {
        signature: _joined(parts, len(parts)) for signature, parts in named.items() if labels[signature] in clashes
    }
    seen: Counter[str] = Counter()
    for signature, label in labels.items():
        seen[label] += 1
        if seen[label] > 1:  # values that differ only in what is cut off
            labels[signature] = f"{label} ({seen[label]})"
    return [labels[signature] for signature in signatures]


_ABSENT = object()


def _flatten(
    node: Mapping[str, Any], prefix: str, ignore: Collection[str], flat: dict[str, Any], config: Mapping[str, Any]
) -> None:
    for key, value in node.items():
        path = f"{prefix}{key}"
        if plain_key(path) in ignore or key == "_target_":
            continue
        if isinstance(value, Mapping) and "_target_" in value:
            word = searcher_word(config) if path == "searcher" else option_word(str(key), value)
            flat[path] = word
            _flatten(value, f"{path}<{word}>.", ignore, flat, config)
        elif isinstance(value, Mapping) and value:
            _flatten(value, f"{path}.", ignore, flat, config)
        else:
            flat[path] = value


def _filled(column: Sequence[Any]) -> list[Any]:
    """`column` with the most common value in place of those that are absent."""
    present = [value for value in column if value is not _ABSENT]
    common = Counter(map(_canonical, present)).most_common(1)[0][0]
    usual = next(value for value in present if _canonical(value) == common)
    return [usual if value is _ABSENT else value for value in column]


def _independent(keys: Iterable[str], columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """`keys` without those that have another one's values, or follow from the number of trials; the shorter stays."""
    ordered = list(keys)
    trials = [columns[key] for key in ordered if plain_key(key) in _TRIALS]
    kept: dict[str, str] = {}
    for key in sorted(ordered, key=lambda key: (key.count("."), len(plain_key(key)), ordered.index(key))):
        if plain_key(key).rpartition(".")[2] in _FROM_TRIALS and any(_follows(columns[key], of) for of in trials):
            continue
        kept.setdefault(_canonical(columns[key]), key)
    return [key for key in ordered if key in kept.values()]


def _follows(column: Sequence[Any], of: Sequence[Any]) -> bool:
    """Whether each value of `of` comes with one value of `column`."""
    pairs = {(_canonical(key), _canonical(value)) for key, value in zip(of, column, strict=True)}
    return len({key for key, _ in pairs}) == len(pairs)


def _short(key: str, every: Collection[str]) -> str:
    """The shortest end of the dotted `key` that is the end of no other key among `every`; trials are called trials.

    What isn't the searcher's keeps two parts: ``finalist.num`` says more than ``num``.
    """
    if key in _TRIALS:
        return "trials"
    parts = key.split(".")
    least = 1 if parts[0] == "searcher" else 2
    for start in range(len(parts) - least, 0, -1):
        end = ".".join(parts[start:])
        if sum(other == end or other.endswith(f".{end}") for other in every) == 1:
            return end
    return key


def _shown(value: Any) -> str:
    """`value` as YAML writes it, in a few characters; of a path the last part."""
    if isinstance(value, str):
        text = value.rstrip("/").rpartition("/")[2] or value
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = _canonical(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _joined(parts: Sequence[str], most: int) -> str:
    return ", ".join([*parts[:most], *(["…"] if len(parts) > most else [])])


def _canonical(value: Any) -> str:
    """The same text for equal values, whatever YAML made of them: 1 and 1.0 are one number, true is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)
