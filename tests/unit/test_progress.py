"""What a learner did is kept in the learner's own folder, survives a reset put aside, and never costs an exercise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import labkit as lk
from labkit import lessons
from labkit.errors import LabkitError, ParameterError
from labkit.glossary import for_learner
from labkit.lessons import predictions, progress
from labkit.paths import notebooks_dir
from labkit.session import Chapter, chapter
from labkit.workbench import copy_notebooks

CHAPTER = "06_run_queue_latency"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my"
    monkeypatch.setenv("LABKIT_WORK", str(folder))
    monkeypatch.delenv("LABKIT_HEADLESS", raising=False)
    return folder


def row(name: str = CHAPTER) -> dict[str, str]:
    return progress.table().set_index("chapter").loc[name].to_dict()


class TestExercises:
    def test_a_right_answer_is_a_tick_and_a_wrong_one_is_not(self, mine: Path) -> None:
        assert row() == {"predicted": "", "exercises": "0 of 3", "open": "06.1, 06.2, 06.3", "state": ""}
        lk.check("06.3", "all")
        assert (row()["exercises"], row()["state"]) == ("0 of 3", "begun")
        lk.check("06.3", "almost none")
        assert (row()["exercises"], row()["open"]) == ("1 of 3", "06.1, 06.2")
        kept = json.loads((mine / ".progress.json").read_text())["exercises"]["06.3"]
        assert kept["wrong"] == 1

    def test_an_answer_that_is_not_given_yet_is_nothing(self, mine: Path) -> None:
        lk.check("06.3", ...)
        assert not (mine / ".progress.json").exists()

    def test_a_right_answer_stays_right(self, mine: Path) -> None:
        lk.check("06.3", "almost none")
        lk.check("06.3", "all")
        assert row()["exercises"] == "1 of 3"

    def test_a_run_without_a_reader_is_nobodys_progress(
        self, mine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LABKIT_HEADLESS", "1")
        lk.check("06.3", "almost none")
        chapter(CHAPTER, "replay").predict({"waits": 1})
        assert not mine.exists()

    def test_an_answer_that_could_not_be_run_is_neither_solved_nor_wrong(self, mine: Path) -> None:
        lab = chapter(CHAPTER, "replay")
        unknown = {"    entry->waits++;\n": "    entry->waits++;\n    bpf_send_signal(0);\n"}
        shown = lk.check("06.2", lk.write_program("runq_latency", change=unknown), lab=lab)
        assert (shown.passed, shown.hint) == (False, "")
        assert str(shown).startswith("Not run. ")
        assert (row()["exercises"], row()["open"]) == ("0 of 3", "06.1, 06.2 (not run), 06.3")
        kept = json.loads((mine / ".progress.json").read_text())["exercises"]["06.2"]
        assert (kept["wrong"], kept["solved"]) == (0, None)
        progress.solved("06.2")
        assert row()["open"] == "06.1, 06.3"

    def test_in_a_run_without_a_reader_it_is_an_error(
        self, mine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LABKIT_HEADLESS", "1")
        lab = chapter(CHAPTER, "replay")
        unknown = {"    entry->waits++;\n": "    entry->waits++;\n    bpf_send_signal(0);\n"}
        with pytest.raises(lessons.ExerciseNotSolved):
            lk.check("06.2", lk.write_program("runq_latency", change=unknown), lab=lab)

    def test_all_solved_is_done(self, mine: Path) -> None:
        for one in lessons.exercises("06"):
            progress.solved(one.id)
        assert row()["state"] == "done"
        assert row()["open"] == ""

    def test_a_damaged_file_and_a_folder_that_cannot_be_written_cost_no_exercise(
        self, mine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine.mkdir()
        (mine / ".progress.json").write_text("[")
        assert lk.check("06.3", "almost none").passed
        monkeypatch.setenv("LABKIT_WORK", "/proc/nowhere")
        assert lk.check("06.3", "almost none").passed


class TestPredictions:
    @pytest.fixture
    def lab(self, mine: Path) -> Chapter:
        return chapter(CHAPTER, "replay")

    def test_what_was_predicted_is_kept_with_its_time_and_each_change_of_mind(
        self, lab: Chapter, mine: Path
    ) -> None:
        for guess in (0.5, 0.5, np.float64(0.25)):
            assert lab.predict({"share": guess})["share"] == guess
        made = json.loads((mine / ".progress.json").read_text())["predictions"][CHAPTER]
        assert [one["values"] for one in made] == [{"share": 0.5}, {"share": 0.25}]
        assert all(one["at"] for one in made)
        assert row()["predicted"] == "yes"

    def test_what_the_chapter_comes_with_is_nobodys_prediction_until_something_is_changed(
        self, lab: Chapter, mine: Path
    ) -> None:
        given = predictions.given_by(CHAPTER)
        told = lab.predict(given)
        assert len(given) == 3
        assert set(told) == {"not predicted"}
        assert not (mine / ".progress.json").exists()
        assert set(lab.compare(told, dict.fromkeys(given, 1))["off by"]) == {""}
        first = next(iter(given))
        assert dict(lab.predict(given | {first: 0.75})) == given | {first: 0.75}
        assert row()["predicted"] == "yes"

    def test_a_value_that_is_left_open_is_not_predicted_and_the_others_are(
        self, lab: Chapter, mine: Path
    ) -> None:
        told = lab.predict({"share": 0.5, "waits": ...})
        assert dict(told) == {"share": 0.5, "waits": "not predicted"}
        assert lab.compare(told, {"share": 0.5, "waits": 7}).loc["waits", "off by"] == ""
        made = json.loads((mine / ".progress.json").read_text())["predictions"][CHAPTER]
        assert made[0]["values"] == {"share": 0.5}
        assert set(lab.predict({"share": ..., "waits": ...})) == {"not predicted"}

    def test_who_thinks_just_that_says_so(self, lab: Chapter, mine: Path) -> None:
        given = predictions.given_by(CHAPTER)
        assert dict(lab.predict(given, mine=True)) == given
        assert row()["predicted"] == "yes"

    def test_what_earlier_releases_kept_of_the_chapters_own_values_is_no_prediction(self, mine: Path) -> None:
        progress.predicted(CHAPTER, predictions.given_by(CHAPTER))
        assert row()["predicted"] == ""

    def test_a_run_without_a_reader_shows_the_chapters_values(
        self, lab: Chapter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LABKIT_HEADLESS", "1")
        given = predictions.given_by(CHAPTER)
        assert dict(lab.predict(given)) == given

    @pytest.mark.parametrize(
        "path", sorted(notebooks_dir().glob("[0-9][0-9]_*.ipynb")), ids=lambda path: path.stem
    )
    def test_what_each_chapter_comes_with_is_found(self, path: Path) -> None:
        assert predictions.given_by(path.stem)

    @pytest.mark.parametrize(
        ("guess", "value", "off"),
        [
            (23, 23, "nothing"),
            (100.0, 98.0, "2.0%"),
            (5, 20.0, "4 times too low"),
            (20, np.float64(5), "4 times too high"),
            (0, 3, "-3"),
            ("true", "lk-spawner", "wrong"),
            ("true", "true", "right"),
            (True, True, "right"),
        ],
    )
    def test_how_far_off_it_was_is_said_in_words(
        self, lab: Chapter, guess: object, value: object, off: str
    ) -> None:
        told = lab.compare(pd.Series({"x": guess}, dtype="object"), {"x": value})
        assert told.loc["x", "off by"] == off

    def test_other_names_are_an_error(self, lab: Chapter) -> None:
        with pytest.raises(ParameterError, match="not of the same things"):
            lab.compare(pd.Series({"x": 1}), {"y": 1})


class TestReset:
    def test_the_copy_is_fresh_and_the_old_one_put_aside(self, mine: Path) -> None:
        mine.mkdir()
        copy = mine / f"{CHAPTER}.ipynb"
        copy.write_text("my answers")
        progress.solved("06.1")
        progress.solved("01.1")
        progress.predicted(CHAPTER, {"a": 1})
        aside = lk.reset("06")
        assert aside.read_text() == "my answers"
        assert aside.parent == mine / "put-aside"
        assert copy.read_bytes() == for_learner((notebooks_dir() / copy.name).read_bytes())
        assert row() == {"predicted": "", "exercises": "0 of 3", "open": "06.1, 06.2, 06.3", "state": ""}
        assert row("01_hello_world")["state"] == "begun"

    def test_twice_in_a_second_loses_nothing(self, mine: Path) -> None:
        mine.mkdir()
        kept = []
        for words in ("one", "two", "three"):
            (mine / f"{CHAPTER}.ipynb").write_text(words)
            kept.append(lk.reset(CHAPTER))
        assert [path.read_text() for path in kept] == ["one", "two", "three"]

    def test_a_fresh_copy_is_renewed_when_its_chapter_changes(self, mine: Path, tmp_path: Path) -> None:
        source = tmp_path / "notebooks"
        source.mkdir()
        lk.reset("06")
        shutil.copy(notebooks_dir() / f"{CHAPTER}.ipynb", source)
        (source / f"{CHAPTER}.ipynb").write_text("the chapter of tomorrow")
        assert copy_notebooks(source, mine).renewed == (f"{CHAPTER}.ipynb",)

    def test_an_unknown_chapter_and_a_folder_that_cannot_be_written_are_clear_errors(
        self, mine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(ParameterError, match="no chapter '99'"):
            lk.reset("99")
        monkeypatch.setenv("LABKIT_WORK", "/proc/nowhere")
        with pytest.raises(LabkitError, match="cannot be reset"):
            lk.reset("06")


def test_the_index_shows_the_table(mine: Path) -> None:
    cells = json.loads((notebooks_dir() / "index.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    exec("\n".join(code).replace("progress.table()", "shown = progress.table()"), names)
    assert names["shown"].equals(progress.table())  # type: ignore[attr-defined]


def test_any_kind_of_answer_can_be_told_from_another_or_is_always_new() -> None:
    made = [
        pd.Series([3, 2], name="calls"),
        pd.Series([3]),
        pd.DataFrame({"a": [1, 2]}),
        np.array([1, 2]),
        np.int64(7),
        (1.0, 2.0),
        "true",
        None,
    ]
    told = [progress.fingerprint(one) for one in made]
    assert None not in told
    assert len(set(told)) == len(made)
    assert progress.fingerprint(7) == progress.fingerprint(np.int64(7))
    assert progress.fingerprint(object()) is None
