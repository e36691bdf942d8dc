"""What runs on which kernel: the document, what it was made from, and what has changed since."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from guest import compatibility
from guest.comparisons import COMPARISONS
from guest.release import RELEASES
from guest.survey import VERSION, digest
from labkit.lessons.rejects import rejects
from labkit.paths import bpf_dir


def test_the_document_is_what_the_surveys_say_and_says_which_programs_have_changed_since() -> None:
    current = compatibility.document().read_text() == compatibility.render(compatibility.load())
    assert current, (
        "`./task compatibility` surveys anew; with `-- --only nothing` it only says what has changed since"
    )


@pytest.mark.slow  # whoever adds a program need not wait for four kernels at once
def test_every_program_has_been_on_every_kernel() -> None:
    programs = {path.stem for path in bpf_dir().glob("*.c")}
    for survey in compatibility.load():
        assert programs <= {row["program"] for row in survey["hooks"]}, "./task compatibility makes it anew"
    assert len(compatibility.load()) == 1 + len(RELEASES)


def surveyed(kernel: str, *hooks: tuple[str, str, str]) -> dict[str, Any]:
    rows = [
        dict(zip(("program", "label", "hook", "result", "detail"), ("p", "l", *row), strict=True))
        for row in hooks
    ]
    machine = dict.fromkeys(("distribution", "where", "arch", "bcc", "cgroups"), "x") | {"kernel": kernel}
    compared = [{"program": "p", "with": "w", "result": "agrees", "detail": "+0.1 %"}]
    refused = {
        "program": "r",
        "stage": "verifier",
        "result": "as described",
        "mended": "let in",
        "detail": "",
    }
    return {"machine": machine, "hooks": rows, "comparisons": compared, "rejects": [refused]}


@pytest.mark.slow  # made anew after the last change of a program, not after each: it takes a quarter of an hour
def test_what_is_written_down_is_about_the_programs_as_they_are() -> None:
    surveys = compatibility.load()
    assert len(surveys) >= 4
    for survey in surveys:
        where = survey["machine"]["kernel"]
        assert compatibility.changed(survey) == [], f"{where}: ./task compatibility"
        assert [row["program"] for row in survey["rejects"]] == [one.name for one in rejects()], where
        assert [(row["program"], row["with"]) for row in survey["comparisons"]] == [
            (name, with_what) for name, with_what, _ in COMPARISONS
        ], where


def test_what_has_changed_since_a_survey_is_said() -> None:
    programs = {path.stem for path in bpf_dir().glob("*.c")} | {f"rejects/{one.name}" for one in rejects()}
    survey = surveyed("6.1", ("tracepoint:a:b", "works", ""))
    assert compatibility.changed(survey) is None
    assert "| of an earlier survey |" in compatibility.render([survey])
    survey |= {"version": VERSION, "digests": {name: digest(name) for name in programs}}
    assert compatibility.changed(survey) == []
    assert "| as they are now |" in compatibility.render([survey])
    survey["digests"] |= {"hello": "another", "gone": "x"}
    del survey["digests"]["ladder"]
    assert compatibility.changed(survey) == ["gone", "hello", "ladder"]
    assert "| changed since: `gone`, `hello`, `ladder` |" in compatibility.render([survey])


def test_a_program_is_another_when_it_or_what_it_includes_or_its_description_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bpf_dir(), tmp_path / "bpf")
    monkeypatch.setattr("guest.survey.bpf_dir", lambda: tmp_path / "bpf")
    seen = {digest("hello"), digest("rejects/null_value")}
    for changed in ("lk.h", "hello.c", "rejects/null_value.yaml"):
        with (tmp_path / "bpf" / changed).open("a") as file:
            file.write("\n")
        now = {digest("hello"), digest("rejects/null_value")}
        assert now - seen, changed
        seen |= now


def test_refusals_and_what_does_not_compile_have_words_of_their_own() -> None:
    survey = surveyed("6.1", ("tracepoint:a:b", "not compiled", "no member"))
    survey["rejects"].append(
        survey["rejects"][0] | {"program": "s", "result": "let in", "detail": "x", "mended": "refused"}
    )
    text = compatibility.render([survey])
    assert "| `p` | l | `tracepoint:a:b` | does not compile (1) |" in text
    assert "| `r` | verifier | as described |" in text
    assert "| `s` | verifier | let in, also mended (2) |" in text


def test_each_kernel_is_a_column_and_each_reason_a_note() -> None:
    text = compatibility.render(
        [
            surveyed(
                "6.1.0-9-cloud-amd64",
                ("kprobe:f", "absent", "kprobe:f: there is none"),
                ("tracepoint:a:b", "works", ""),
            ),
            surveyed("6.12.9+deb13-cloud-amd64", ("tracepoint:a:b", "refused", "VerifierRejected: too long")),
        ]
    )
    assert "| program | label | hook | 6.1.0-9 | 6.12.9+deb13 |" in text
    assert "| `p` | l | `kprobe:f` | - (1) | not tried |" in text
    assert "| `p` | l | `tracepoint:a:b` | yes | refused (2) |" in text
    assert "1. there is none\n2. VerifierRejected: too long" in text
    assert "| `p` | w | agrees: +0.1 % | agrees: +0.1 % |" in text


def test_a_survey_of_what_has_changed_keeps_what_still_holds() -> None:
    older = {
        "version": VERSION,
        "digests": {"hello": "new", "ladder": "old", "gone": "old", "rejects/no_bounds": "old"},
        "machine": {"kernel": "6.1"},
        "hooks": [{"program": name, "result": "works"} for name in ("gone", "hello", "ladder")],
        "comparisons": [{"program": "ladder", "detail": "then"}],
        "rejects": [{"program": "no_bounds", "detail": "then"}, {"program": "big_stack", "detail": "then"}],
    }
    newer = older | {
        "digests": {"ladder": "new", "rejects/no_bounds": "new"},
        "hooks": [{"program": "ladder", "result": "refused"}],
        "comparisons": [{"program": "ladder", "detail": "now"}],
        "rejects": [{"program": "no_bounds", "detail": "now"}],
    }
    found = compatibility.merged(older, newer)
    assert found["digests"] == {"hello": "new", "ladder": "new", "rejects/no_bounds": "new"}
    assert [(row["program"], row["result"]) for row in found["hooks"]] == [
        ("hello", "works"),
        ("ladder", "refused"),
    ]
    assert [row["detail"] for row in found["comparisons"]] == ["now"]
    assert {row["program"]: row["detail"] for row in found["rejects"]} == {
        "no_bounds": "now",
        "big_stack": "then",
    }
