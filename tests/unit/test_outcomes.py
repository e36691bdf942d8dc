"""What a run leaves behind: complete, readable, compared with the last, and never half-written."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from nbformat.v4 import new_output
from notebook_maker import code, notebook, prose, write

from labkit import harvest
from labkit.errors import OutcomesError
from labkit.findings import Oracle, finding
from labkit.ledger import Ledger
from labkit.outcomes import Outcomes, atomic_write, make_example, read_summary
from labkit.pages import notebook_page
from labkit.paths import captures_dir
from labkit.report import differences, headline, readme
from labkit.runner import run_notebooks

ENVIRONMENT = {"kernel": "6.18.0", "machine": "Debian 12, 2 CPUs", "cpus": 2}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def ledger(mode: Any = "live", lost: int = 0) -> Ledger:
    return Ledger("06/hogs", mode, seen=1000, delivered=1000 - lost, losses={"map full": lost}, unseen=0)


def found(name: str, value: Any, **settings: Any) -> Any:
    """A cell's output that holds a finding."""
    defaults: dict[str, Any] = {"unit": "us", "how": "p99 of waits", "ledger": ledger()}
    return new_output("display_data", data=finding(name, value, **(defaults | settings)).bundle())


def figure(content: bytes = PNG) -> Any:
    return new_output(
        "display_data", data={"image/png": base64.b64encode(content).decode(), "text/plain": "<Figure>"}
    )


def executed(*outputs: Any) -> Any:
    """An executed notebook whose one code cell has ``outputs``."""
    measured = code("measure()", id="measure")
    measured.outputs, measured.execution_count = list(outputs), 1
    return notebook(prose("# Chapter\n\nText.", id="top"), prose("## *Measure* `waits`", id="head"), measured)


def summary_of(mode: str = "live", **values: Any) -> dict[str, Any]:
    """A summary with one notebook that has the findings ``name=value``."""
    outputs = [found(name, value, ledger=ledger(mode)) for name, value in values.items()]
    entry = {"name": "06_wait", "status": "ok", "seconds": 1.0, "mode": mode, "problems": [], "figures": []}
    entry["findings"] = harvest.findings(executed(*outputs))
    return {
        "mode": mode,
        "status": "ok",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 1.0,
        "environment": ENVIRONMENT,
        "notebooks": [entry],
        **{key: ENVIRONMENT[key] for key in ("kernel", "machine")},
    }


def outcomes(folder: Path, *names: str) -> Outcomes:
    return Outcomes(folder, environment=ENVIRONMENT, names=list(names))


def result(name: str, status: str = "ok") -> dict[str, Any]:
    return {"name": name, "status": status, "seconds": 1.0, "problems": [], "parameters": {}}


def run_of(folder: Path, *outputs: Any, name: str = "06_wait") -> Path:
    with outcomes(folder, name) as written:
        written.save_notebook(name, executed(*outputs))
        written.add(result(name), executed(*outputs))
        written.finish("ok", 1.0)
        return written.latest


class TestHarvest:
    def test_findings_come_once_and_in_order(self) -> None:
        outputs = [found("b", 1.0), found("a", 2.0), found("b", 1.0)]
        assert [one["name"] for one in harvest.findings(executed(*outputs))] == ["b", "a"]

    def test_what_is_no_finding_is_left_out(self) -> None:
        broken = new_output("display_data", data={"application/vnd.labkit.finding+json": {"name": "x"}})
        assert harvest.findings(executed(broken)) == []

    def test_figures_know_their_section(self) -> None:
        (shown,) = harvest.figures(executed(figure()))
        assert (shown.section, shown.cell, shown.png) == ("Measure waits", "measure", PNG)

    def test_what_is_no_png_is_left_out(self) -> None:
        assert harvest.figures(executed(figure(b"<svg onload=alert(1)>"))) == []

    @pytest.mark.parametrize(
        ("modes", "expected"),
        [(["live"], "live"), (["replay"], "replay"), (["live", "replay"], "replay"), ([], None)],
    )
    def test_a_notebook_is_live_only_if_all_of_it_is(self, modes: list[str], expected: str | None) -> None:
        outputs = [found(f"n{n}", 1.0, ledger=ledger(mode)) for n, mode in enumerate(modes)]
        assert harvest.mode(executed(*outputs)) == expected


class TestSummary:
    def test_it_has_the_shape_that_programs_rely_on(self, tmp_path: Path) -> None:
        latest = run_of(tmp_path, found("p99", 43.0), figure())
        summary = json.loads((latest / "summary.json").read_text())
        assert (summary["mode"], summary["kernel"], summary["machine"]) == (
            "live",
            "6.18.0",
            "Debian 12, 2 CPUs",
        )
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", summary["started"])
        (entry,) = summary["notebooks"]
        assert (entry["name"], entry["status"], entry["seconds"]) == ("06_wait", "ok", 1.0)
        assert entry["findings"][0].keys() >= {
            "name",
            "value",
            "unit",
            "how",
            "oracle",
            "residual",
            "ledger",
            "mode",
        }
        assert (latest / entry["figures"][0]["file"]).read_bytes() == PNG

    def test_one_replayed_notebook_makes_the_run_a_replay_and_it_says_which(self, tmp_path: Path) -> None:
        with outcomes(tmp_path, "01_a", "02_b") as written:
            written.add(result("01_a"), executed(found("x", 1.0)))
            written.add(result("02_b"), executed(found("x", 1.0, ledger=ledger("replay"))))
            written.finish("ok", 1.0)
        summary = read_summary(tmp_path / "latest")
        assert summary is not None
        assert (summary["mode"], summary["modes"]) == ("replay", {"live": ["01_a"], "replay": ["02_b"]})
        assert "Not all notebooks ran in the same mode" in (tmp_path / "latest" / "README.md").read_text()

    def test_a_killed_run_leaves_a_whole_summary_that_says_where_it_was(self, tmp_path: Path) -> None:
        with outcomes(tmp_path, "01_a", "02_b") as written:
            written.add(result("01_a"), executed(found("x", 1.0)))
            written.begin("02_b")
        summary = read_summary(tmp_path / "latest")
        assert summary is not None
        assert (summary["status"], summary["finished"]) == ("running", None)
        assert [entry["status"] for entry in summary["notebooks"]] == ["ok", "running"]


class TestReadme:
    def test_the_headline_comes_first_with_its_figure(self, tmp_path: Path) -> None:
        checked = found("p99 wait", 43.0, oracle=Oracle("run_delay", 42.5), tolerance="2 %")
        text = (run_of(tmp_path, found("other", 1), checked, figure()) / "README.md").read_text()
        lines = [line for line in text.splitlines() if line]
        assert lines[0] == "# A live run"
        assert lines[2] == "## p99 wait: 43 us"
        assert lines[3:6] == [
            "- Measured (live, 06_wait): p99 of waits",
            "- Held against run_delay: 42.5 us; residual +0.5 us (+1.18 %)",
            "- Ledger: events: seen 1,000, delivered 1,000, unseen 0",
        ]
        assert lines[6] == "![Measure waits (06_wait)](figures/06_wait-1.png)"

    def test_its_figure_is_the_one_that_stands_before_it(self, tmp_path: Path) -> None:
        book = executed(figure())
        for name, outputs in (("second", [figure()]), ("third", [found("p99", 1.0)]), ("fourth", [figure()])):
            book.cells.append(code("show()", id=name))
            book.cells[-1].outputs = outputs
        with outcomes(tmp_path, "06_wait") as written:
            written.add(result("06_wait"), book)
            written.finish("ok", 1.0)
        figures = re.findall(r"figures/06_wait-\d.png", (tmp_path / "latest" / "README.md").read_text())
        assert [one[-5] for one in figures] == ["2", "1", "3"]

    def test_a_drawing_is_no_result(self, tmp_path: Path) -> None:
        book = executed(figure())
        book.cells[-1].metadata["tags"] = ["drawing"]
        with outcomes(tmp_path, "06_wait") as written:
            written.add(result("06_wait"), book)
            assert written.entry("06_wait")["figures"] == []
            assert "data:image/png" in (tmp_path / "latest" / "pages" / "06_wait.html").read_text()

    def test_an_untrusted_finding_is_never_the_headline_nor_stated(self) -> None:
        untrusted = harvest.findings(executed(found("lossy", 5, ledger=ledger(lost=500)), found("sound", 7)))
        summary = summary_of() | {"notebooks": [summary_of()["notebooks"][0] | {"findings": untrusted}]}
        chosen = headline(summary)
        assert chosen is not None
        assert chosen[1]["name"] == "sound"
        assert "**5 us**" not in readme(summary)
        assert "(read: 5 us)" in readme(summary)
        assert "**1 not trusted**" in readme(summary)

    def test_a_marked_headline_goes_before_later_findings(self) -> None:
        both = harvest.findings(executed(found("marked", 5, headline=True), found("later", 7)))
        summary = summary_of() | {"notebooks": [summary_of()["notebooks"][0] | {"findings": both}]}
        chosen = headline(summary)
        assert chosen is not None
        assert chosen[1]["name"] == "marked"

    def test_of_the_marked_the_chapter_on_the_question_goes_first(self) -> None:
        names = ("08_the_noisy_neighbour", "10_metrics")
        entries = [
            summary_of()["notebooks"][0]
            | {"name": name, "findings": harvest.findings(executed(found(f"of {name}", 5, headline=True)))}
            for name in names
        ]
        chosen = headline(summary_of() | {"notebooks": entries})
        assert chosen is not None
        assert chosen[0]["name"] == "08_the_noisy_neighbour"

    def test_a_large_residual_stands_beside_what_is_allowed_and_percentages_are_points_apart(self) -> None:
        shares = [
            found("share", 1.4, unit="%", oracle=Oracle("list", 1.0), tolerance=0.5),
            found("cost", 14.0, unit="ns", oracle=Oracle("kernel", 10.0), tolerance="50 %"),
            found("count", 3, unit="calls", oracle=Oracle("own", 3)),
        ]
        entry = summary_of()["notebooks"][0] | {"findings": harvest.findings(executed(*shares))}
        text = readme(summary_of() | {"notebooks": [entry]})
        assert "| +0.4 points (+40 %) | ± 0.5 points |" in text
        assert "| +4 ns (+40 %) | ± 50 % of it |" in text
        assert "| 0 calls | none |" in text

    def test_a_replay_says_where_its_capture_was_recorded(self, tmp_path: Path) -> None:
        name = "06_run_queue_latency"
        about = json.loads((captures_dir() / name / "capture.json").read_text())["environment"]
        text = (
            run_of(tmp_path, found("x", 1.0, ledger=ledger("replay")), name=name) / "README.md"
        ).read_text()
        (line,) = [line for line in text.splitlines() if line.startswith("Replayed here, recorded on ")]
        assert f"Linux {about['kernel']}" in line
        assert "recorded on" not in (run_of(tmp_path, found("x", 1.0), name=name) / "README.md").read_text()

    def test_a_figure_is_called_what_its_cell_calls_it(self, tmp_path: Path) -> None:
        measured = executed(figure())
        measured.cells[-1].source = 'draw(frame, title="Who waited")'
        with outcomes(tmp_path, "06_wait") as written:
            written.add(result("06_wait"), measured)
            written.finish("ok", 1.0)
        assert (
            "![Who waited (06_wait)](figures/06_wait-1.png)"
            in (tmp_path / "latest" / "README.md").read_text()
        )

    def test_a_headline_that_is_held_against_nothing_says_so(self) -> None:
        assert "\n- Held against nothing" in readme(summary_of(wait=5))

    def test_every_link_and_figure_exists(self, tmp_path: Path) -> None:
        latest = run_of(tmp_path, found("p99", 43.0), figure(), figure())
        targets = re.findall(r"\]\(([^)]+)\)", (latest / "README.md").read_text())
        assert len(targets) == 4
        assert [target for target in targets if not (latest / target).is_file()] == []

    def test_hostile_names_stay_text(self) -> None:
        from markdown_it import MarkdownIt

        name = "<img src=x onerror=alert(1)>|`*[x](http://e.vil)\x1b[2J"
        summary = summary_of(**{name: 5.0})
        summary["notebooks"][0]["problems"] = [{"what": name, "cell": name, "detail": ""}]
        rendered = MarkdownIt("commonmark").enable("table").render(readme(summary, summary_of(**{name: 6.0})))
        assert "<img" not in rendered
        assert "<a " not in rendered.replace('<a href="pages/', "").replace('<a href="notebooks/', "")
        assert "\x1b" not in rendered


class TestDifferences:
    def test_changed_new_gone_and_equal(self) -> None:
        before, now = summary_of(a=10.0, b=1.0, c=3.0), summary_of(a=12.0, b=1.0, d=4.0)
        assert {one.name: one.change for one in differences(before, now)} == {
            "a": "+2 us (+20 %)",
            "b": "",
            "c": "gone",
            "d": "new",
        }

    def test_a_notebook_that_did_not_run_has_lost_nothing(self) -> None:
        now = summary_of()
        now["notebooks"][0]["status"] = "not run"
        assert differences(summary_of(a=1.0), now) == []

    def test_text_findings_change_in_words(self) -> None:
        assert differences(summary_of(hook="kprobe"), summary_of(hook="fentry"))[0].change == "changed"

    def test_a_replay_is_not_compared_with_a_live_run_in_silence(self) -> None:
        text = readme(summary_of(mode="replay", a=1.0), summary_of(a=2.0))
        assert "It was another case:** mode live, now replay" in text

    def test_the_run_before_is_kept_and_compared(self, tmp_path: Path) -> None:
        run_of(tmp_path, found("p99", 40.0))
        latest = run_of(tmp_path, found("p99", 43.0))
        assert "| 06 | p99 | 40 us | 43 us | +3 us (+7.5 %) |" in (latest / "README.md").read_text()
        assert (tmp_path / "previous" / "notebooks" / "06_wait.ipynb").is_file()

    def test_a_run_that_found_nothing_does_not_push_out_one_that_did(self, tmp_path: Path) -> None:
        run_of(tmp_path, found("p99", 40.0))
        run_of(tmp_path)
        latest = run_of(tmp_path, found("p99", 43.0))
        assert "| 06 | p99 | 40 us | 43 us |" in (latest / "README.md").read_text()


class TestExample:
    def test_it_is_small_and_links_to_nothing_that_is_not_there(self, tmp_path: Path) -> None:
        run_of(tmp_path, found("p99", 43.0), figure())
        example = make_example(tmp_path)
        files = sorted(str(path.relative_to(example)) for path in example.rglob("*") if path.is_file())
        assert files == ["README.md", "figures/06_wait-1.png", "summary.json"]
        targets = re.findall(r"\]\(([^)]+)\)", (example / "README.md").read_text())
        assert targets == ["figures/06_wait-1.png"]

    def test_a_failed_run_is_no_example(self, tmp_path: Path) -> None:
        with outcomes(tmp_path, "01_a") as written:
            written.add(result("01_a", "failed"), executed())
            written.finish("failed", 1.0)
        with pytest.raises(OutcomesError, match="no example"):
            make_example(tmp_path)


class TestFaults:
    def test_a_file_is_replaced_whole_or_not_at_all(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "summary.json"
        atomic_write(path, b"old")

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OutcomesError, match="No space left"):
            atomic_write(path, b"new", durable=True)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_outcomes_that_are_a_file_are_an_error_before_anything_runs(self, tmp_path: Path) -> None:
        (tmp_path / "outcomes").write_text("")
        with pytest.raises(OutcomesError, match="cannot write"):
            run_notebooks([write(tmp_path / "50_a.ipynb", "1")], outcomes=tmp_path / "outcomes")

    def test_two_runs_do_not_write_to_one_folder(self, tmp_path: Path) -> None:
        with (
            outcomes(tmp_path, "01_a"),
            pytest.raises(OutcomesError, match="another run"),
            outcomes(tmp_path, "01_a"),
        ):
            pass
        run_of(tmp_path)  # and the folder is free again

    def test_a_read_only_folder_is_an_error_before_anything_runs(
        self, tmp_path: Path, small_disk: Path
    ) -> None:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        ran = tmp_path / "ran"
        trap = write(tmp_path / "50_a.ipynb", f"open({str(ran)!r}, 'w')")
        with pytest.raises(OutcomesError, match="Read-only file system") as caught:
            run_notebooks([trap], outcomes=small_disk / "outcomes")
        assert "--outcomes" in caught.value.remedy
        assert not ran.exists()

    def test_a_full_disk_is_an_error_before_anything_runs(self, tmp_path: Path, small_disk: Path) -> None:
        fill(small_disk, leave=100_000)
        with pytest.raises(OutcomesError, match="No space left"):
            run_notebooks([write(tmp_path / "50_a.ipynb", "1")], outcomes=small_disk / "outcomes")
        assert not (small_disk / "outcomes" / ".reserve").exists()

    def test_a_disk_that_fills_in_the_middle_keeps_what_was_found(
        self, tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        state = "from labkit.findings import finding\nfrom labkit.ledger import Ledger\n"
        state += "finding('{}', {}, unit='us', how='given', ledger=Ledger.none('given'))"
        paths = [
            write(tmp_path / "51_a.ipynb", state.format("first", 11)),
            write(tmp_path / "52_b.ipynb", state.format("second", 22), "print('x' * 4_000_000)"),
            write(tmp_path / "53_c.ipynb", "1"),
        ]
        with pytest.raises(OutcomesError, match="No space left"):
            run_notebooks(paths, outcomes=small_disk / "outcomes")
        latest = small_disk / "outcomes" / "latest"
        summary = read_summary(latest)
        assert summary is not None
        assert [entry["status"] for entry in summary["notebooks"]] == ["ok", "failed", "not run"]
        assert [entry["findings"][0]["value"] for entry in summary["notebooks"][:2]] == [11, 22]
        assert json.loads((latest / "notebooks" / "51_a.ipynb").read_text())["nbformat"] == 4
        assert not list(small_disk.rglob("*.tmp"))
        assert "52_b: second = 22 us" in capsys.readouterr().out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path, *, leave: int) -> None:
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(b"x" * (free - leave))


ENTRY = {"name": "06_wait", "status": "ok", "mode": "live", "seconds": 1.0, "problems": []}

LOADING = """
<img src="{0}/a"><img srcset="{0}/l 2x"><input type="image" src="{0}/j"><svg><image href="{0}/k"/></svg>
<video poster="{0}/h" src="{0}/i"></video><object data="{0}/g"></object><iframe src="{0}/d"></iframe>
<script src="{0}/b"></script><link rel="stylesheet" href="{0}/c"><form action="{0}/m"></form>
<style>body {{ background: url({0}/e) }}</style><p style="background: url({0}/f)">x</p><body onload="fetch('{0}/n')">
"""
REFRESH = '<meta http-equiv="refresh" content="0;{0}/o">'


def loading_notebook(base: str) -> Any:
    """A notebook whose prose and outputs try to load things from ``base`` in every way HTML has."""
    output = new_output(
        "display_data", data={"text/html": (LOADING + REFRESH).format(base), "text/plain": "x"}
    )
    script = new_output(
        "display_data", data={"application/javascript": f"fetch('{base}/p')", "text/plain": "x"}
    )
    made = executed(output, script)
    made.cells.insert(0, prose(f"![x]({base}/q) {LOADING.format(base)}", id="loading"))
    return made


class TestPages:
    def test_nothing_in_a_page_loads_from_elsewhere(self) -> None:
        page = notebook_page(loading_notebook("http://127.0.0.1:9"), entry=ENTRY, kernel="6.18")
        loads = re.findall(
            r"""(?:src|srcset|href|poster|data|action|background)\s*=\s*["'](?!data:|#|index\.html)[^"']*["']|url\(|@import""",
            page,
        )
        assert loads == []
        assert "<script" not in page
        assert "Content-Security-Policy" in page

    def test_ordinary_links_still_work(self) -> None:
        made = executed()
        made.cells.insert(
            0, prose("[docs](https://docs.kernel.org/bpf/) [bad](javascript:alert(1))", id="links")
        )
        page = notebook_page(made, entry=ENTRY, kernel="6.18")
        assert 'href="https://docs.kernel.org/bpf/"' in page
        assert "javascript:" not in page

    def test_figures_frames_and_findings_are_in_it(self) -> None:
        table = new_output("display_data", data={"text/html": "<table class='dataframe'><td>7</td></table>"})
        page = notebook_page(executed(figure(), table, found("p99", 43.0)), entry=ENTRY, kernel="6.18")
        assert "data:image/png;base64,iVBOR" in page
        assert 'alt="Measure waits"' in page
        assert "<td>7</td>" in page
        assert "p99 = 43 us" in page

    def test_a_failure_is_told_at_the_top_with_its_traceback(self) -> None:
        problem = {"what": "<b>ZeroDivisionError</b>", "cell": "measure", "detail": "line 1\n<b>line 2</b>"}
        page = notebook_page(
            executed(), entry=ENTRY | {"status": "failed", "problems": [problem]}, kernel="6.18"
        )
        assert "&lt;b&gt;ZeroDivisionError&lt;/b&gt;" in page
        assert "line 1\n&lt;b&gt;line 2&lt;/b&gt;" in page
        assert 'href="#cell-id=measure"' in page
        assert 'id="cell-id=measure"' in page

    def test_a_browser_asks_no_one_for_anything(self, tmp_path: Path, browser: str) -> None:
        asked: list[str] = []
        with serving(asked) as base:
            trap = tmp_path / "trap.html"
            trap.write_text(f"<html><body>{LOADING.format(base)}</body></html>")
            visit(browser, trap)
            assert asked, "without protection the browser must ask, or this test proves nothing"
            asked.clear()
            page = tmp_path / "page.html"
            page.write_text(notebook_page(loading_notebook(base), entry=ENTRY, kernel="6.18"))
            visit(browser, page)
        assert asked == []

    def test_the_policy_alone_is_enough(self, tmp_path: Path, browser: str) -> None:
        asked: list[str] = []
        with serving(asked) as base:
            page = tmp_path / "page.html"
            empty = notebook_page(executed(), entry=ENTRY, kernel="6.18")
            # As if the filter had overlooked all of it. (Not the refresh: that is navigation, which no policy covers.)
            page.write_text(empty.replace("</body>", f"{LOADING.format(base)}</body>"))
            visit(browser, page)
        assert asked == []


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("there is no chromium here: apt-get install chromium")
    return found


def visit(browser: str, page: Path) -> None:
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={page.parent / 'profile'}",
    ]
    command += ["--disable-background-networking", "--dump-dom", page.as_uri()]  # after the load event
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "<body" in done.stdout, done.stderr


class serving:
    """A web server on loopback that writes down what it is asked for."""

    def __init__(self, asked: list[str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
