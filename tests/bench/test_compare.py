"""What the comparison makes of its measurements: order of runs, ratios, verdicts, the table."""

import pytest

from bench.brokers import BROKERS
from bench.compare import (
    COLUMNS,
    SCENARIOS,
    Goal,
    Measure,
    Result,
    Results,
    Row,
    Scenario,
    Variant,
    middle,
    render,
    rows,
    turns,
)
from bench.profile import fold


def scenario(measure: Measure, *goals: Goal) -> Scenario:
    """A scenario with a plain variant that has the goals, and a second that has to keep up."""
    brokers = ("ganglion", "mosquitto", "nats")
    keep_up = Goal(0.8 if measure == "rate" else 1.25, "ganglion", "plain")
    return Scenario(
        "made up",
        measure,
        (
            Variant("plain", (), brokers, goals),
            Variant("second", ("--v5",), ("ganglion",), (keep_up,)),
        ),
    )


def runs(*values: float | None) -> list[Result]:
    """One result for each value."""
    return [Result(each) for each in values]


def test_every_round_runs_everything_and_alternate_rounds_run_backwards() -> None:
    """No broker always runs first, and none runs twice before all others had their turn."""
    order = turns(scenario("rate"), ("ganglion", "mosquitto"), 3)
    once = [(0, "ganglion"), (0, "mosquitto"), (1, "ganglion")]
    assert order == [*once, *once[::-1], *once]


def test_the_run_that_counts_is_the_one_in_the_middle() -> None:
    """One lucky or unlucky run changes nothing, and runs that failed do not count."""
    assert middle(runs(2.0, None, 900.0, 1.0)) == Result(2.0)
    assert middle(runs(4.0, 3.0, 2.0, 1.0)) == Result(2.0)
    assert middle(runs(None, None)) is None
    assert middle([]) is None


@pytest.mark.parametrize(
    ("measure", "own", "other", "ratio", "reached"),
    [
        ("rate", 200.0, 100.0, 2.0, True),
        ("rate", 199.0, 100.0, 1.99, False),
        ("latency", 200.0, 100.0, 2.0, True),
        ("latency", 201.0, 100.0, 2.01, False),
    ],
)
def test_a_ratio_is_judged_in_the_direction_of_what_is_measured(
    measure: Measure, own: float, other: float, ratio: float, reached: bool
) -> None:
    """'2x' is the least that a rate may be and the most that a latency may be."""
    made_up = scenario(measure, Goal(2, "mosquitto", "Mosquitto"))
    results: Results = {(0, "ganglion"): runs(own), (0, "mosquitto"): runs(other)}
    (line,) = rows(made_up, results)
    assert line.ratio == pytest.approx(ratio)
    assert line.reached is reached


def test_an_absolute_bound_needs_no_other_broker() -> None:
    """Memory per connection is held against a number of bytes and has no ratio."""
    made_up = scenario("memory", Goal(3000, None, "B"))
    (line,) = rows(made_up, {(0, "ganglion"): runs(2999.6)})
    assert (line.goal, line.ratio, line.reached) == ("<= 3,000 B", None, True)
    (line,) = rows(made_up, {(0, "ganglion"): runs(3001)})
    assert line.reached is False


def test_several_goals_of_one_variant_are_lines_of_their_own() -> None:
    """Rates stand once, on the first line; every line has its own ratio and verdict."""
    made_up = scenario("rate", Goal(2, "mosquitto", "Mosquitto"), Goal(3, "nats", "NATS"))
    results: Results = {
        (0, "ganglion"): runs(250),
        (0, "mosquitto"): runs(100),
        (0, "nats"): runs(100),
    }
    first, second = rows(made_up, results)
    assert (first.title, first.goal, first.reached) == ("plain", ">= 2x Mosquitto", True)
    assert (second.title, second.goal, second.reached) == ("", ">= 3x NATS", False)
    assert first.values == {"ganglion": "250 /s", "mosquitto": "100 /s", "nats": "100 /s"}
    assert second.values == {}


def test_a_later_variant_is_held_against_the_first() -> None:
    """MQTT 5 clients are compared with the 3.1.1 clients of the same minutes."""
    results: Results = {(0, "ganglion"): runs(100), (1, "ganglion"): runs(79)}
    lines = rows(scenario("rate"), results)
    assert [each.title for each in lines] == ["plain", "second"]
    assert lines[0].reached is None
    assert lines[1].ratio == pytest.approx(0.79)
    assert lines[1].reached is False


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    """Without the other broker, or without Ganglion, there is no ratio and no verdict."""
    made_up = scenario("rate", Goal(2, "mosquitto", "Mosquitto"))
    (line,) = rows(made_up, {(0, "ganglion"): runs(1)})
    assert (line.ratio, line.reached) == (None, None)
    (line,) = rows(made_up, {(0, "mosquitto"): runs(1)})
    assert (line.ratio, line.reached) == (None, None)
    (line,) = rows(made_up, {(0, "ganglion"): runs(1), (0, "mosquitto"): runs(None)})
    assert (line.ratio, line.reached, line.values["mosquitto"]) == (None, None, "failed")
    assert rows(made_up, {}) == []


def test_a_fault_in_any_run_of_ours_makes_the_figure_missed() -> None:
    """A broker that loses acknowledged messages has not been fast, also when another run was."""
    made_up = scenario("rate", Goal(2, "mosquitto", "Mosquitto"))
    lossy = Result(100.0, faults=("1 acknowledged messages lost",))
    for own in ([lossy, Result(900.0)], [Result(None, faults=("it crashed",))]):
        (line,) = rows(made_up, {(0, "ganglion"): own, (0, "mosquitto"): runs(100)})
        assert line.reached is False


def test_a_rate_that_the_load_program_bounded_is_marked() -> None:
    """The reader sees which figures say more about the load program than about the broker."""
    (line,) = rows(scenario("rate"), {(0, "ganglion"): [Result(1_234_567.0, at_limit=True)]})
    assert line.values["ganglion"] == "1,234,567 /s*"


def test_the_table_is_aligned_and_has_a_column_for_each_broker_that_ran() -> None:
    """All lines are equally long, so that the Markdown can be read as it is."""
    lines = [
        Row("one", ">= 2x Mosquitto", {"ganglion": "10 /s", "mosquitto": "4 /s"}, 2.5, True),
        Row("", ">= 3x NATS", {}, 2.5, False),
        Row("another", "", {"ganglion": "7 /s"}, None, None),
    ]
    assert render(lines, ("mosquitto", "ganglion")).splitlines() == [
        "| scenario | figure to reach | Ganglion | Mosquitto | ratio | reached |",
        "| -------- | --------------- | -------: | --------: | ----: | ------- |",
        "| one      | >= 2x Mosquitto |    10 /s |      4 /s |  2.50 | yes     |",
        "|          | >= 3x NATS      |          |           |  2.50 | NO      |",
        "| another  |                 |     7 /s |           |       |         |",
    ]


@pytest.mark.parametrize("each", SCENARIOS, ids=lambda each: each.name)
def test_every_goal_can_be_judged(each: Scenario) -> None:
    """What a goal refers to is measured in the first variant, and every broker has a column."""
    assert set(COLUMNS) == set(BROKERS)
    for variant in each.variants:
        assert set(variant.brokers) <= set(BROKERS)
        assert "ganglion" in variant.brokers
        for goal in variant.goals:
            assert goal.against is None or goal.against in each.variants[0].brokers


def test_scenario_names_are_distinct() -> None:
    """``--only NAME`` means one scenario."""
    names = [each.name for each in SCENARIOS]
    assert len(set(names)) == len(names)


def test_samples_are_summed_by_function_and_by_line() -> None:
    """A function that calls itself counts once in what it includes; empty lines count nothing."""
    shares = fold(
        ["a (m.py:1);b (m.py:2) 3", "a (m.py:1);b (m.py:4);b (m.py:5) 2", "", "a (m.py:1) 1"]
    )
    assert shares.total == 6
    assert shares.functions == {"b (m.py)": 5, "a (m.py)": 1}
    assert shares.inclusive == {"a (m.py)": 6, "b (m.py)": 5}
    assert shares.lines == {"b (m.py:2)": 3, "b (m.py:5)": 2, "a (m.py:1)": 1}
