"""Charts: the figures of an overview, each as a table of numbers and as a drawing.

Room: web. Imports pygal and the ledger's overview. Promises that text from traffic is escaped (pygal writes XML), and
that each drawing can be read without its colours: what it shows is also there as a table.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import pygal
from pygal.style import Style

from usage_ledger.ledger.overview import Group, Spent, Waits

TOP = 6
"""So many models are told apart; the rest is one."""

RANKED = 10
TIME = "time (UTC)"
REST = "others"
NONE = "(none)"
"""Names of ours; where traffic has the same, they get an asterisk (`_apart`)."""

_LABEL, _LEGENDS = 36, 80
"""Cells of a name beside a bar (a UUID has 36), and of the names of legends in one line."""

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
"""Okabe and Ito's, which most kinds of colour blindness tell apart, on dark as on light."""

_STYLE = Style(
    background="transparent",
    plot_background="transparent",
    foreground="currentColor",
    foreground_strong="currentColor",
    foreground_subtle="#88888866",
    colors=_COLOURS,
    font_family="inherit",
    opacity="0.85",
    label_font_size=13,
    major_label_font_size=13,
    legend_font_size=13,
)

type Numbers = list[float | None]


@dataclass(frozen=True)
class Chart:
    """A figure. `series` are numbers by name, one for each of `labels`. `kind`: bars, lines or ranking."""

    name: str
    title: str
    unit: str
    kind: str
    labels: list[str]
    series: dict[str, Numbers] = field(default_factory=dict)
    heading: str = TIME
    """What the labels are."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw: no amounts. A share of 0 % is something."""
        found = [number for numbers in self.series.values() for number in numbers if number is not None]
        return not found if self.kind == "lines" else not any(found)

    def rows(self) -> list[list[Any]]:
        """Return the figure as a table, its first line the headings; others a label and numbers."""
        numbers = self.series.values()
        rows: list[list[Any]] = [[_apart(self.heading, self.series), *self.series]]
        rows += [[label, *(each[place] for each in numbers)] for place, label in enumerate(self.labels)]
        return rows

    @property
    def _legend_columns(self) -> int:
        return 2 if len(self.series) == 4 else max(1, min(3, len(self.series)))

    def drawing(self) -> str:
        """Draw it as SVG, to stand in a page."""
        is_ranking = self.kind == "ranking"
        chart = self._empty(is_ranking)
        order = -1 if is_ranking else 1  # pygal begins below
        labels = [_short(label, _LABEL) for label in self.labels][::order]
        chart.x_labels = labels
        if not is_ranking:
            chart.x_labels_major = labels[:: max(1, len(labels) // 6)]
        for name, numbers in self.series.items():
            chart.add(_short(name, _LEGENDS // self._legend_columns), numbers[::order])
        tree = chart.render_tree()
        for parent in tree.iter():
            for script in [each for each in parent if str(each.tag).endswith("script")]:
                parent.remove(script)  # what a pointer would need that we do not show
        return ElementTree.tostring(tree, encoding="unicode")

    def _empty(self, is_ranking: bool) -> pygal.Graph:
        """Return a drawing of this kind and size, with nothing in it yet."""
        most = max((number or 0 for each in self.series.values() for number in each), default=0)
        return _KINDS[self.kind](
            style=_STYLE,
            js=[],
            disable_xml_declaration=True,
            explicit_size=False,
            width=680,
            height=max(180, 60 + 26 * len(self.labels)) if is_ranking else 280 + 22 * (len(self.series) // 4),
            margin=8,
            # pygal leaves room for the full lines of a legend alone.
            margin_bottom=8 + (22 if len(self.series) % self._legend_columns else 0),
            legend_at_bottom=True,
            legend_at_bottom_columns=self._legend_columns,
            show_legend=len(self.series) > 1,
            truncate_legend=-1,
            truncate_label=-1,
            range=(0, most or 1) if self.kind == "lines" else None,
            x_label_rotation=0,
            show_minor_x_labels=False,
            include_x_axis=True,
            value_formatter=lambda number: shown(number, self.unit),
            dots_size=2,
            no_data_text="nothing",
        )


_KINDS: dict[str, Callable[..., pygal.Graph]] = {
    "bars": pygal.StackedBar,
    "lines": pygal.Line,
    "ranking": pygal.HorizontalBar,
}


def seen(text: str) -> str:
    """Return a text with U+FFFD for what no eye sees, what turns the text around it, and what XML does not know."""
    if text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(each) in _UNSEEN and each not in "\n\t" else each for each in text)


_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _short(name: str, room: int) -> str:
    """Return a name in so many cells, cut where it has more; characters of East Asia take two."""
    text, left = " ".join(seen(name).split()), room
    for place, each in enumerate(text):
        left -= 2 if unicodedata.east_asian_width(each) in "WF" else 1
        if left < 0:
            return text[: max(0, place - 1)] + "\u2026"
    return text


def _apart(name: str, others: Collection[str]) -> str:
    """Return a name of ours that is none of theirs."""
    while name in others:
        name += "*"
    return name


def shown(number: float | None, unit: str) -> str:
    """Write a number for a person, in no more digits than are read."""
    if number is None:
        return ""
    if unit == "USD":
        return f"${number:,.2f}" if abs(number) >= 1 or number == 0 else f"${number:.4f}"
    if unit == "%":
        return f"{number:.1f} %"
    if unit == "s":
        return f"{number:,.2f} s"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            return f"{number / (1e3 if letter == 'k' else size):,.1f}{letter}"
    return f"{number:,.0f}"


def charts_of(
    labels: Sequence[str], groups: Sequence[Group], spent: Sequence[Spent], waits: Mapping[str, Waits]
) -> list[Chart]:
    """Return the figures of an overview; `labels` are its steps."""
    names = list(labels)
    place = {name: number for number, name in enumerate(names)}

    def by_step(value: Callable[[Group], float]) -> Numbers:
        numbers = [0.0] * len(names)
        for each in groups:
            if each.step in place:  # of rows whose start another program has written, nobody knows when it was
                numbers[place[each.step]] += value(each)
        return list(numbers)

    requests, failed = by_step(lambda each: each.requests), by_step(lambda each: each.failed)
    flagged = by_step(lambda each: each.flagged)
    asked = by_step(lambda each: each.input + each.cache_write + each.cache_read)
    cached = by_step(lambda each: each.cache_read)
    kinds = {
        "input": by_step(lambda each: each.input),
        "output": by_step(lambda each: each.output),
        "cache write": by_step(lambda each: each.cache_write),
        "cache read": by_step(lambda each: each.cache_read),
    }
    times: dict[str, Numbers] = {"half": [None] * len(names), "95 %": [None] * len(names)}
    for name, told in waits.items():
        if name in place:
            times["half"][place[name]], times["95 %"][place[name]] = told.half / 1000, told.most / 1000
    return [
        Chart("cost", "Cost by model", "USD", "bars", names, _by_model(spent, names, lambda each: each.cost)),
        Chart("tokens", "Tokens by model", "tokens", "bars", names, _by_model(spent, names, lambda each: each.tokens)),
        Chart("kinds", "Tokens by kind", "tokens", "bars", names, kinds),
        Chart("cache", "Input that came from the cache", "%", "lines", names, {"cache hits": _shares(cached, asked)}),
        Chart("requests", "Requests and errors", "requests", "bars", names, _split(requests, failed)),
        Chart("flagged", "Flagged requests", "%", "lines", names, {"flagged": _shares(flagged, requests)}),
        Chart("waits", "Time to first token", "s", "lines", names, times),
        _ranking("account", groups, lambda each: each.account),
        _ranking("tag", groups, lambda each: each.tag),
    ]


def _split(requests: Numbers, failed: Numbers) -> dict[str, Numbers]:
    return {
        "answered": [(each or 0) - (bad or 0) for each, bad in zip(requests, failed, strict=True)],
        "failed (HTTP 400 and above)": failed,
    }


def _shares(part: Numbers, whole: Numbers) -> Numbers:
    return [100 * (one or 0) / of if of else None for one, of in zip(part, whole, strict=True)]


def _by_model(spent: Iterable[Spent], names: Sequence[str], value: Callable[[Spent], float]) -> dict[str, Numbers]:
    place = {name: number for number, name in enumerate(names)}
    told = [each for each in spent if each.step in place]
    costs: dict[str, float] = defaultdict(float)
    for each in told:
        costs[each.model] += each.cost
    ranked = sorted(costs, key=lambda model: (-costs[model], model))  # so that a model has one colour everywhere
    series = {model: [0.0] * len(names) for model in ranked[:TOP]}
    rest = [0.0] * len(names)
    for each in told:
        series.get(each.model, rest)[place[each.step]] += value(each)
    # What was taken out of a model leaves a trace of it, as binary fractions do.
    rounded = {model: [round(number, 9) + 0.0 for number in numbers] for model, numbers in series.items()}
    chosen: dict[str, Numbers] = {model: [*numbers] for model, numbers in rounded.items() if any(numbers)}
    if len(ranked) > TOP:
        chosen[_apart(REST, ranked)] = [round(number, 9) + 0.0 for number in rest]
    return chosen


def _ranking(what: str, groups: Iterable[Group], key: Callable[[Group], str | None]) -> Chart:
    costs: dict[str | None, float] = defaultdict(float)
    for each in groups:
        costs[key(each)] += each.cost
    ranked = sorted(costs, key=lambda one: (-costs[one], one or ""))[:RANKED]
    none = _apart(NONE, [one for one in ranked if one is not None])
    labels = [none if one is None else one for one in ranked]
    numbers: Numbers = [costs[one] for one in ranked]
    return Chart(f"{what}s", f"Top {what}s by cost", "USD", "ranking", labels, {"cost": numbers}, what)
