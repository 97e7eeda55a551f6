"""An ablation: what each variant of a searcher makes of the numbers, and by how much it differs from the default.

The difference is paired: seed by seed, on the seeds that both have, so that what a seed does to both cancels. Its
spread is the standard deviation of these differences; a mean within it may be the seeds'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from compsearch.comparison.comparison import Comparison
from compsearch.comparison.estimate import Estimate, is_beyond, mean_and_spread
from compsearch.comparison.seeds import columns_in_order
from compsearch.comparison.tables import CLOCK_LABELS, search_clock
from compsearch.comparison.text_table import TextCell, TextTable
from compsearch.comparison.verdicts import budget_text
from compsearch.report.captions import counted
from compsearch.report.table import NOT_MEASURED

TEST_BEFORE, TEST_AFTER, SEARCH = "test_before", "test_after", "search"
#: What is told of a variant; the last is seconds, the others accuracies on that split, fractions.
QUANTITIES: Mapping[str, str] = {
    TEST_BEFORE: "test accuracy before fine-tuning",
    TEST_AFTER: "test accuracy after fine-tuning",
    SEARCH: "search accuracy",
    "search_s": "search",
}
DEFAULTS = ("default", "")
#: What the rows of one table share; `beside` is what was swept beside the variants, "" for nothing.
PLACE = ("facet", "searcher", "beside", "resource", "budget")

#: One row per variant and quantity; the default's own differences are empty.
ABLATION_COLUMNS = (
    *PLACE,
    "variant",
    "is_default",
    "quantity",  # test_before | test_after | search | search_s
    "unit",  # accuracy | cpu_s | wall_s
    "num_seeds",
    "num_repeated",  # further runs of a seed at other settings; the first one counts
    "mean",
    "std",
    "num_pairs",  # seeds that the default has too
    "difference",  # to the default, mean over pairs
    "difference_std",
    "is_beyond_spread",  # |difference| > difference_std; nothing with fewer than two pairs
)


def default_variant(variants: Sequence[str]) -> str | None:
    """What the others are compared with: ``default`` where there is one, else the unnamed; None without either.

    An ablation's own default shares its other settings (fewer trials, say), which plain runs may not.
    """
    return next((name for name in DEFAULTS if name in variants), None)


def ablation_frame(comparison: Comparison) -> pd.DataFrame:
    """`ABLATION_COLUMNS` of every searcher with variants, at every facet and budget; no rows where there are none.

    A variant may be of another searcher, what is left of LeGR without its affine map, say: it stands beside the
    ``default`` of the same list of variants, where just one searcher has that. The default comes first, the variants in
    the order met. Beside a variant called ``default`` the unnamed runs are left out. Searches whose cost is counted
    with another run have no seconds.
    """
    networks = _placed(comparison)
    rows: list[dict[str, object]] = []
    for places, of_place in networks.groupby(list(PLACE), sort=False, dropna=False):
        variants = list(dict.fromkeys(map(str, of_place["variant"])))
        if all(variant in DEFAULTS for variant in variants):
            continue
        clock = search_clock(of_place)
        values = {
            variant: _values(of_place[of_place["variant"] == variant], clock)
            for variant in variants
            if not (variant == "" and "default" in variants)
        }
        default = default_variant(list(values))
        for variant in sorted(values, key=lambda name: name != default):
            for quantity in QUANTITIES:
                unit = clock if quantity == "search_s" else "accuracy"
                own = values[variant][quantity]
                other = values[default][quantity] if default is not None and variant != default else {}
                if own:
                    named = dict(zip(PLACE, places, strict=True)) | {"variant": variant}
                    named |= {"is_default": variant == default, "quantity": quantity, "unit": unit}
                    named["num_repeated"] = _num_repeated(of_place[of_place["variant"] == variant])
                    rows.append(named | _numbers(own, other))
    return columns_in_order(rows, ABLATION_COLUMNS)


def _placed(comparison: Comparison) -> pd.DataFrame:
    """The networks but for dense ones, with `beside`, and variants under the searcher whose default they belong to."""
    networks = comparison.networks[comparison.networks["stage"] != "dense"]
    lists = {run.name: json.dumps(run.config.get("variants"), sort_keys=True, default=str) for run in comparison.runs}
    beside = {run.name: str(run.config.get("swept") or "") for run in comparison.runs}
    of_list = pd.Series([lists.get(run, "null") for run in networks["run"]], networks.index, dtype=object)
    defaults = networks[networks["variant"] == "default"].groupby(["facet", of_list])["searcher"].unique()
    owners = {place: found[0] for place, found in defaults.items() if len(found) == 1}
    searchers = [
        searcher if variant in DEFAULTS else owners.get((facet, listed), searcher)
        for facet, listed, variant, searcher in zip(
            networks["facet"], of_list, networks["variant"], networks["searcher"], strict=True
        )
    ]
    return networks.assign(searcher=searchers, beside=[beside.get(run, "") for run in networks["run"]])


def _num_repeated(rows: pd.DataFrame) -> int:
    return int(rows[rows["stage"] == "before"].duplicated("seed").sum())


def ablation_tables(ablation: pd.DataFrame, comparison: Comparison, *, settings: Sequence[str] = ()) -> list[TextTable]:
    """`ablation_frame` for people: a table per facet, searcher and budget.

    `settings` are dotted keys of `Run.settings` to show beside the variant's name. A difference beyond its spread has a
    star.
    """
    tables = []
    for (facet, searcher, beside, resource, budget), rows in ablation.groupby(list(PLACE), sort=False, dropna=False):
        told = [quantity for quantity in QUANTITIES if (rows["quantity"] == quantity).any()]
        headings = ["variant", *settings, "seeds"]
        for quantity in told:
            unit = str(rows.loc[rows["quantity"] == quantity, "unit"].iloc[0])
            label = QUANTITIES[quantity]
            headings += [f"{label} (%)" if unit == "accuracy" else f"{label}, {CLOCK_LABELS[unit]}", "to the default"]
        lines = []
        for variant, of_variant in rows.groupby("variant", sort=False):
            place = {"facet": facet, "searcher": searcher, "variant": variant, "budget": budget}
            cells = [variant or "default", *(_setting(comparison, place, key) for key in settings)]
            cells.append(str(of_variant["num_seeds"].max()))
            by_quantity = {row["quantity"]: row for row in of_variant.to_dict("records")}
            for quantity in told:
                cells += _quantity_cells(by_quantity.get(quantity))
            is_default = bool(of_variant["is_default"].iloc[0])
            lines.append(tuple(TextCell(cell, is_bold=is_default and not index) for index, cell in enumerate(cells)))
        place_text = ", ".join(filter(None, [str(facet), budget_text(str(resource), float(budget)), str(beside)]))
        caption = f"{searcher}: {place_text}, mean ± standard deviation over seeds"
        num_labels = 1 + len(settings)
        tables.append(TextTable(caption, tuple(headings), tuple(lines), num_labels=num_labels, notes=_notes(rows)))
    return tables


def _values(rows: pd.DataFrame, clock: str) -> dict[str, dict[int, float]]:
    """Of one variant at one budget, every quantity by seed; of several runs of a seed the first counts."""
    before, after = (rows[rows["stage"] == stage].drop_duplicates("seed") for stage in ("before", "after"))
    searched = before[before["is_learned_elsewhere"].ne(True)]
    return {
        TEST_BEFORE: _by_seed(before, "accuracy_test"),
        TEST_AFTER: _by_seed(after, "accuracy_test"),
        SEARCH: _by_seed(before, "accuracy_search"),
        "search_s": _by_seed(searched, clock),
    }


def _by_seed(rows: pd.DataFrame, column: str) -> dict[int, float]:
    rows = rows[rows[column].notna()]
    return {int(seed): float(value) for seed, value in zip(rows["seed"], rows[column], strict=True)}


def _numbers(own: Mapping[int, float], default: Mapping[int, float]) -> dict[str, object]:
    estimate = Estimate.of(own.values())
    paired = Estimate.of(own[seed] - default[seed] for seed in own if seed in default)
    return {
        "num_seeds": estimate.num,
        "mean": estimate.mean,
        "std": estimate.std,
        "num_pairs": paired.num,
        "difference": paired.mean,
        "difference_std": paired.std,
        "is_beyond_spread": is_beyond(paired.mean, paired.std),
    }


def _quantity_cells(row: Mapping[str, Any] | None) -> list[str]:
    """What a variant has, and its difference to the default."""
    if row is None:
        return [NOT_MEASURED, NOT_MEASURED]
    is_accuracy = row["unit"] == "accuracy"
    scale, decimals = (100.0, 2) if is_accuracy else (1.0, 1)
    value = mean_and_spread(Estimate(row["mean"], row["std"], row["num_seeds"]), scale=scale, decimals=decimals)
    if row["is_default"]:
        return [value, ""]
    paired = Estimate(row["difference"], row["difference_std"], row["num_pairs"])
    difference = mean_and_spread(paired, scale=scale, decimals=decimals)
    if not paired.num:
        return [value, NOT_MEASURED]
    sign = "" if difference.startswith("-") else "+"  # a -0.00 stays: it is less, if by little
    pairs = "" if paired.num == row["num_seeds"] else f" ({counted(paired.num, 'pair', 'pairs')})"
    star = "*" if row["is_beyond_spread"] is True else ""
    return [value, f"{sign}{difference}{star}{pairs}".replace("-", "−")]


def _setting(comparison: Comparison, place: Mapping[str, object], key: str) -> str:
    """The value of the setting `key` in a variant's runs; ``varies`` where they differ."""
    texts = dict.fromkeys(
        str(run.settings[key])
        for run in comparison.runs
        if (run.facet, run.variant) == (place["facet"], place["variant"])
        and (run.searcher == place["searcher"] or run.variant not in DEFAULTS)
        and key in run.settings
    )
    return NOT_MEASURED if not texts else next(iter(texts)) if len(texts) == 1 else "varies"


def _notes(rows: pd.DataFrame) -> tuple[str, ...]:
    num_repeated = int(rows.groupby("variant")["num_repeated"].max().sum())
    notes = [
        "To the default: mean ± standard deviation of the differences on the same seeds, in points or seconds. A star: "
        "it is more than that spread, which with a few seeds is a hint and no proof."
        if rows["is_default"].any()
        else "There is no run of the default, so there are no differences."
    ]
    if num_repeated:
        runs = counted(num_repeated, "further run has", "further runs have")
        notes.append(f"{runs} the variant and seed of another one at other settings; the first one counts.")
    return tuple(notes)
