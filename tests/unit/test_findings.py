"""A finding says what it is worth, and nothing that the kernel calls itself gets out of its quotes."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from labkit.errors import MissingLedger, ParameterError
from labkit.findings import MIME_TYPE, Finding, Oracle, finding
from labkit.ledger import Ledger
from labkit.text import html, markdown, markdown_code, number, percent, plain, quantity

WHOLE = Ledger(capture="06/hogs", mode="live", seen=1000, delivered=1000, unseen=0)


def make(value: Any = 43.0, **changed: Any) -> Finding:
    settings: dict[str, Any] = {"unit": "us", "how": "p99 of waits", "ledger": WHOLE}
    return finding("p99_wait", value, **(settings | changed))


class TestTrust:
    def test_within_tolerance_is_trusted(self) -> None:
        result = make(43.0, oracle=Oracle("run_delay", 42.5), tolerance=0.5)
        assert (result.trusted, result.residual, result.reasons) == (True, 0.5, ())
        assert result.residual_relative == pytest.approx(0.5 / 42.5)

    def test_beyond_tolerance_is_not(self) -> None:
        result = make(43.0, oracle=Oracle("run_delay", 42.4), tolerance=0.5)
        assert not result.trusted
        assert "run_delay" in result.reasons[0]

    @pytest.mark.parametrize(
        ("value", "trusted"), [(101.9, True), (102.1, False), (98.1, True), (97.9, False)]
    )
    def test_a_tolerance_may_be_a_share_of_the_oracle(self, value: float, trusted: bool) -> None:
        assert make(value, oracle=Oracle("run_delay", 100.0), tolerance="2 %").trusted is trusted

    def test_an_oracle_without_tolerance_means_exactly(self) -> None:
        assert make(23, oracle=Oracle("the workload", 23)).trusted
        assert not make(22, oracle=Oracle("the workload", 23)).trusted

    def test_text_is_compared_for_equality(self) -> None:
        assert make("kprobe", oracle=Oracle("the program", "kprobe")).trusted
        other = make("kprobe", oracle=Oracle("the program", "fentry"))
        assert (other.trusted, other.residual) == (False, None)

    def test_a_ledger_that_does_not_balance_is_a_reason(self) -> None:
        result = make(ledger=Ledger(capture="c", mode="live", seen=100, delivered=99))
        assert "does not balance" in result.reasons[0]

    @pytest.mark.parametrize(("lost", "trusted"), [(10, True), (11, False)])
    def test_loss_is_material_above_one_percent(self, lost: int, trusted: bool) -> None:
        ledger = Ledger(capture="c", mode="live", seen=1000, delivered=1000 - lost, losses={"map full": lost})
        assert make(ledger=ledger).trusted is trusted

    def test_unseen_events_are_loss_too(self) -> None:
        assert not make(ledger=Ledger(capture="c", mode="live", seen=100, delivered=100, unseen=2)).trusted

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_finite_is_not_trusted(self, value: float) -> None:
        result = make(value, oracle=Oracle("run_delay", 1.0), tolerance=10.0)
        assert not result.trusted
        assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["value"] is None

    def test_the_mode_is_the_ledgers(self) -> None:
        assert make(ledger=Ledger(capture="c", mode="replay", seen=1, delivered=1)).mode == "replay"


class TestRefusals:
    @pytest.mark.parametrize("ledger", [None, {}, "none"])
    def test_no_finding_without_a_ledger(self, ledger: Any) -> None:
        with pytest.raises(MissingLedger, match="p99_wait"):
            make(ledger=ledger)

    @pytest.mark.parametrize(
        "changed",
        [
            {"value": [1, 2]},
            {"value": None},
            {"tolerance": -1},
            {"tolerance": math.nan},
            {"tolerance": "2"},
            {"tolerance": "-2 %"},
            {"oracle": 3},
        ],
    )
    def test_what_makes_no_sense_is_refused(self, changed: dict[str, Any]) -> None:
        with pytest.raises(ParameterError):
            make(**changed)

    def test_a_name_is_needed(self) -> None:
        with pytest.raises(ParameterError):
            finding(" ", 1, unit="", how="", ledger=WHOLE)


class TestShown:
    def test_outside_a_notebook_it_prints_text(self, capsys: pytest.CaptureFixture[str]) -> None:
        make(43.0, oracle=Oracle("run_delay", 42.5), tolerance=1)
        assert capsys.readouterr().out.startswith("p99_wait = 43 us  (live)\n  measured   p99 of waits\n")

    def test_held_against_nothing_is_said(self) -> None:
        alone = make(43.0)
        assert "\n  oracle     none\n" in str(alone)
        assert re.search(r"oracle\s*(<[^>]*>\s*)+none", alone._repr_html_())

    def test_a_trusted_value_is_stated_and_an_untrusted_one_is_not(self) -> None:
        good, bad = make(43.0), make(43.0, oracle=Oracle("run_delay", 9.0))
        assert "p99_wait = 43 us" in str(good)
        assert "p99_wait = 43 us" in good._repr_html_()
        for shown in (str(bad), bad._repr_html_()):
            assert "= 43" not in shown
            assert "no trusted value" in shown.lower()
            assert "what was read" in shown

    def test_numpy_scalars_become_json(self) -> None:
        result = make(np.float64(1.5), oracle=Oracle("run_delay", np.int64(1)), tolerance=np.float32(1))
        data = json.loads(json.dumps(result.bundle()[MIME_TYPE]))
        assert (data["value"], data["oracle"]["value"], data["residual"]) == (1.5, 1, 0.5)

    def test_it_carries_the_whole_ledger(self) -> None:
        data = make().as_dict()
        assert Ledger.from_dict(data["ledger"]) == WHOLE
        assert data["losses"] == WHOLE.describe()


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=1>',
    "a|b",
    "`x`",
    "*b* _c_ [l](http://e.vil)",
    "\x1b[31mred",
]


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


def elements(source: str) -> list[str]:
    parser = _Elements()
    parser.feed(source)
    return parser.found


class TestHostileNames:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_html_gains_no_element(self, name: str) -> None:
        harmless = finding("n", 1, unit="u", how="h", ledger=WHOLE, oracle=Oracle("o", 2), note="n")
        result = finding(name, 1, unit=name, how=name, ledger=WHOLE, oracle=Oracle(name, 2), note=name)
        assert elements(result._repr_html_()) == elements(harmless._repr_html_())

    @pytest.mark.parametrize("name", HOSTILE)
    def test_markdown_shows_the_name_and_nothing_else(self, name: str) -> None:
        from markdown_it import MarkdownIt

        renderer = MarkdownIt("commonmark").enable("table")
        for shown in (markdown(name), markdown_code(name)):
            table = f"| head | two |\n|---|---|\n| {shown} | end |\n"
            rendered = renderer.render(table)
            assert set(elements(rendered)) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
            assert rendered.count("<td") == 2
            assert html(name) in rendered.replace("&#x27;", "'").replace("'", "&#x27;")

    def test_terminals_get_no_escapes_and_no_hidden_characters(self) -> None:
        shown = plain("a\x1b[2J\u202eb\u2028\x07\r\n\u200bz")
        assert shown.isprintable()
        assert plain("two\nlines\t.", lines=True) == "two\nlines\t."
        assert "\x1b" not in str(finding("x\x1b[2J", 1, unit="\x1b", how="\x1b", ledger=WHOLE))

    def test_bare_addresses_do_not_become_links(self) -> None:
        assert "://" not in markdown("http://e.vil")
        assert "www." not in markdown("www.e.vil")


class TestNumbers:
    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (0, "0"),
            (0.0, "0"),
            (23, "23"),
            (1234567, "1,234,567"),
            (1234567.9, "1,234,568"),
            (43.0, "43"),
            (43.256, "43.26"),
            (0.0123456, "0.01235"),
            (-12.5, "-12.5"),
            (1e-7, "1.000e-07"),
            (math.nan, "nan"),
            (True, "True"),
            ("kprobe", "kprobe"),
        ],
    )
    def test_numbers_are_for_people(self, value: Any, shown: str) -> None:
        assert number(value) == shown

    def test_units_signs_and_shares(self) -> None:
        assert quantity(3, "us", sign=True) == "+3 us"
        assert quantity("x", "") == "x"
        assert (percent(0.0123), percent(-0.5, sign=True), percent(None)) == ("1.23 %", "-50 %", "")
