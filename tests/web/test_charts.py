"""Charts: figures as tables and as drawings, whatever the names in them are."""

import re
from xml.etree import ElementTree as ET

import pytest
from usage_ledger.ledger.overview import Group, Spent, Waits
from usage_ledger.web.charts import NONE, RANKED, REST, TIME, TOP, Chart, charts_of, seen, shown

DAYS = ["2026-11-01", "2026-11-02"]


def group(step: str = DAYS[0], **more: object) -> Group:
    nothing = Group(step, "m", "a", None, 1, 0, 0, 0, 10, 5, 2, 8, 0.5)
    return nothing._replace(**more)  # type: ignore[arg-type]


def charts(groups: list[Group], spent: list[Spent] | None = None, **waits: Waits) -> dict[str, Chart]:
    found = spent or [Spent(each.step, each.model, each.tokens, each.cost) for each in groups]
    return {chart.name: chart for chart in charts_of(DAYS, groups, found, waits)}


def test_figures_are_told_by_day() -> None:
    found = charts([group(), group(DAYS[1], failed=1, flagged=1), group(DAYS[1])])
    assert found["kinds"].series["cache read"] == [8, 16]
    assert found["requests"].series == {"answered": [1, 1], "failed (HTTP 400 and above)": [0, 1]}
    assert found["flagged"].series == {"flagged": [0, 50]}
    assert found["cache"].series == {"cache hits": [40, 40]}
    assert found["cost"].rows() == [["time (UTC)", "m"], [DAYS[0], 0.5], [DAYS[1], 1.0]]


def test_days_without_requests_have_no_share() -> None:
    assert charts([group()])["cache"].series == {"cache hits": [40, None]}
    assert all(chart.is_empty for chart in charts([]).values())


def test_the_most_costly_models_are_told_apart_and_the_rest_is_one() -> None:
    found = charts([group(model=f"model {number}", cost=float(number)) for number in range(TOP + 3)])
    names = list(found["cost"].series)
    assert names == [*(f"model {number}" for number in range(TOP + 2, 2, -1)), REST]
    assert found["cost"].series[REST] == [0 + 1 + 2, 0]
    assert list(found["tokens"].series) == names  # so that a model has one colour everywhere


def test_accounts_and_tags_are_ranked_by_cost() -> None:
    found = charts([group(account=f"{number}", cost=float(number)) for number in range(RANKED + 5)])
    assert found["accounts"].labels == [str(number) for number in range(RANKED + 4, 4, -1)]
    assert found["tags"].labels == [NONE]


def test_names_of_ours_are_never_those_of_traffic() -> None:
    """A model may be called as we call the rest of them, and a tag as we call none."""
    models = [REST, *(f"model {number}" for number in range(TOP + 1)), TIME]
    found = charts([group(model=model, cost=100.0 - place) for place, model in enumerate(models)])["cost"]
    assert list(found.series)[:2] == [REST, "model 0"]
    assert list(found.series)[-1] == f"{REST}*"
    assert sum(number or 0 for numbers in found.series.values() for number in numbers) == sum(
        100 - place for place, _ in enumerate(models)
    )
    assert charts([group(model=TIME)])["cost"].rows()[0] == [f"{TIME}*", TIME]
    tags = charts([group(tag=None, cost=2.0), group(tag=NONE, cost=1.0)])["tags"]
    assert tags.rows() == [["tag", "cost"], [f"{NONE}*", 2.0], [NONE, 1.0]]


def test_a_share_of_nothing_is_drawn_and_an_amount_of_nothing_is_not() -> None:
    found = charts([group(cost=0.0, flagged=0), group(DAYS[1], cost=0.0)])
    assert not found["flagged"].is_empty
    assert found["flagged"].drawing().count('class="line') >= 1
    assert found["cost"].is_empty
    assert found["accounts"].is_empty


def test_what_was_taken_out_of_a_model_leaves_no_trace_of_it() -> None:
    moved = [Spent(DAYS[0], "m", 0, 0.1 + 0.2), Spent(DAYS[0], "m", 0, -0.3), Spent(DAYS[0], "n", 1, 0.3)]
    assert list(charts([group()], moved)["cost"].series) == ["n"]


@pytest.mark.parametrize("name", ["x" * 4000, "模" * 4000, "arn:aws:bedrock:us-east-1:1234:inference-profile/us"])
def test_a_long_name_is_cut_in_a_drawing_and_leaves_room_for_bars(name: str) -> None:
    found = charts([group(account=name, model=name, cost=1.0), group(account="b", model="n", cost=2.0)])
    for chart in (found["accounts"], found["cost"]):
        drawing = chart.drawing()
        assert "\u2026" in drawing
        assert name not in drawing
        widths = [float(each) for each in re.findall(r'<rect [^>]*width="([\d.]+)"[^>]*class="rect', drawing)]
        assert max(widths) > (200 if chart.kind == "ranking" else 50)
    assert found["accounts"].labels[1] == name  # the table has all of it


def test_what_no_eye_sees_is_shown_as_such() -> None:
    assert seen("a\u202egnp.exe\x1b[31m\u2028b\ud800") == "a\ufffdgnp.exe\ufffd[31m\ufffdb\ufffd"
    assert seen("two\nlines, 模型, é\u00a0€") == "two\nlines, 模型, é\u00a0€"


def test_rows_whose_start_is_no_time_are_left_out() -> None:
    assert charts([group("yesterday"), group()])["requests"].series["answered"] == [1, 0]


@pytest.mark.parametrize("name", ["<script>x</script>", "a\"b'c&d", "\x1b[31m", "模型", "x" * 500, "\ud800", ""])
def test_a_drawing_is_xml_whatever_the_names_are(name: str) -> None:
    for chart in charts([group(model=name, account=name, tag=name)]).values():
        drawing = chart.drawing()
        ET.fromstring(drawing.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
        assert "<script" not in drawing


def test_a_drawing_has_a_mark_for_each_number() -> None:
    found = charts([group(), group(DAYS[1])], **{DAYS[0]: Waits(100.0, 200.0)})
    assert found["cost"].drawing().count('class="bar"') == 2
    assert found["waits"].series == {"half": [0.1, None], "95 %": [0.2, None]}


def test_numbers_are_written_in_no_more_digits_than_are_read() -> None:
    told = [(0, "USD"), (0.01234, "USD"), (1234.5, "USD"), (12.345, "%"), (0.4567, "s"), (None, "s")]
    assert [shown(*each) for each in told] == ["$0.00", "$0.0123", "$1,234.50", "12.3 %", "0.46 s", ""]
    assert [shown(number, "tokens") for number in (999, 12_345, 1_234_567, 2_500_000_000)] == [
        *("999", "12.3k", "1.2M", "2.5G")
    ]
