"""JupyterLab as a learner gets it: on loopback, with a token, in copies that are never overwritten."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.errors import LabkitError
from labkit.workbench import copy_notebooks


def test_a_learners_notebook_is_never_overwritten_and_new_chapters_come(tmp_path: Path) -> None:
    source, mine = tmp_path / "notebooks", tmp_path / "my"
    source.mkdir()
    for name in ("01_a", "02_b", "03_c"):
        (source / f"{name}.ipynb").write_text("first")
    assert copy_notebooks(source, mine).new == ("01_a.ipynb", "02_b.ipynb", "03_c.ipynb")

    (mine / "01_a.ipynb").write_text("my answers")
    (mine / "03_c.ipynb").unlink()
    for name in ("01_a", "02_b", "04_d"):
        (source / f"{name}.ipynb").write_text("second")
    copies = copy_notebooks(source, mine)
    assert (copies.new, copies.renewed, copies.kept) == (
        ("03_c.ipynb", "04_d.ipynb"),
        ("02_b.ipynb",),
        ("01_a.ipynb",),
    )
    assert (mine / "01_a.ipynb").read_text() == "my answers"
    assert (mine / "02_b.ipynb").read_text() == "second"

    (mine / ".copies.json").unlink()  # without its memory it still does not overwrite
    assert copy_notebooks(source, mine).kept == ("01_a.ipynb",)
    assert (mine / "01_a.ipynb").read_text() == "my answers"


def test_a_copy_that_was_only_opened_is_still_renewed(tmp_path: Path) -> None:
    """JupyterLab notes the version of Python in each notebook that it opens, and saves that."""
    source, mine = tmp_path / "notebooks", tmp_path / "my"
    source.mkdir()
    notebook = {"cells": [{"cell_type": "markdown", "metadata": {}, "source": "a kprobe"}], "metadata": {}}
    (source / "01_a.ipynb").write_text(json.dumps(notebook))
    copy_notebooks(source, mine)
    opened = json.loads((mine / "01_a.ipynb").read_text())
    opened["metadata"] = {"language_info": {"version": "3.11.7"}}
    (mine / "01_a.ipynb").write_text(json.dumps(opened, indent=2))

    notebook["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "more"})  # type: ignore[attr-defined]
    (source / "01_a.ipynb").write_text(json.dumps(notebook))
    assert copy_notebooks(source, mine).renewed == ("01_a.ipynb",)
    assert "more" in (mine / "01_a.ipynb").read_text()


def test_the_glossary_lies_beside_the_copies_and_terms_lead_to_it(tmp_path: Path) -> None:
    source, mine = tmp_path / "notebooks", tmp_path / "my"
    source.mkdir()
    notebook = {"cells": [{"cell_type": "markdown", "metadata": {}, "source": ["a kprobe\n", "and BTF"]}]}
    (source / "01_a.ipynb").write_text(json.dumps(notebook))
    copy_notebooks(source, mine)
    (cell,) = json.loads((mine / "01_a.ipynb").read_text())["cells"]
    assert cell["source"] == ["a [kprobe](glossary.md#kprobe)\n", "and [BTF](glossary.md#BTF)"]
    glossary = (mine / "glossary.md").read_text()
    assert "## kprobe" in glossary
    assert set(re.findall(r"\]\(([^)#:]+)", glossary)) <= {"functions.md", "glossary.md", "https"}, (
        "no link leads out of the folder"
    )


def test_working_copies_that_cannot_be_written_are_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LabkitError, match="working copies") as caught:
        copy_notebooks(tmp_path, tmp_path / "file/my")
    assert "LABKIT_WORK" in caught.value.remedy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str, Path]]:
    """A running JupyterLab: its process id, the address it printed, and the learner's folder."""
    folder = tmp_path_factory.mktemp("a learner")
    # Its own folders, so that the settings of whoever runs the tests are neither used nor changed.
    own = {
        name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    env = os.environ | own | {"LABKIT_WORK": str(folder / "my"), "JUPYTER_PLATFORM_DIRS": "1"}
    log = folder / "log"
    argv = [sys.executable, "-m", "labkit.cli", "notebook", "--port=0", "--no-browser"]
    with log.open("w") as output, subprocess.Popen(argv, env=env, stdout=output, stderr=output) as process:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://\S+", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield process.pid, found.group(), folder / "my"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def get(address: str, path: str, *, token: bool = True) -> object:
    base, _, secret = re.match(r"(http://[^/]+)(.*)token=(\w+)", address).groups()  # type: ignore[union-attr]
    request = urllib.request.Request(
        base + path, headers={"Authorization": f"token {secret}"} if token else {}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def test_it_opens_on_the_index_of_the_learners_own_copies(server: tuple[int, str, Path]) -> None:
    _, address, folder = server
    assert "/lab/tree/index.ipynb?token=" in address
    listed = get(address, "/api/contents/")
    assert "index.ipynb" in {entry["name"] for entry in listed["content"]}  # type: ignore[index]
    assert (folder / "index.ipynb").is_file()


def test_without_the_token_there_is_nothing(server: tuple[int, str, Path]) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(server[1], "/api/contents/", token=False)
    assert caught.value.code == 403
    caught.value.close()


def test_it_listens_on_loopback_alone(server: tuple[int, str, Path]) -> None:
    pid, address, _ = server
    assert address.startswith("http://127.0.0.1:")
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it may close one while we look
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
            inodes |= {match[1]} if match else set()
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    listening = {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}
    assert listening == {"0100007F"}  # 127.0.0.1, as proc(5) writes it


def test_it_asks_for_no_news_and_looks_for_no_updates(server: tuple[int, str, Path]) -> None:
    settings = get(server[1], "/lab/api/settings/@jupyterlab/apputils-extension:notification")
    defaults = {name: entry["default"] for name, entry in settings["schema"]["properties"].items()}  # type: ignore[index]
    assert (defaults["fetchNews"], defaults["checkForUpdates"]) == ("false", False)


def test_a_fresh_copy_is_trusted_and_nothing_warns(server: tuple[int, str, Path]) -> None:
    _, address, folder = server
    entry = get(address, "/api/contents/01_hello_world.ipynb?content=1")
    assert entry["content"]["cells"]  # type: ignore[index]
    assert "WARN" not in (folder.parent / "log").read_text()
    assert "not trusted" not in (folder.parent / "log").read_text()


def test_every_link_of_the_index_leads_to_a_notebook(server: tuple[int, str, Path]) -> None:
    cells = json.loads((server[2] / "index.ipynb").read_text())["cells"]
    text = "".join("".join(cell["source"]) for cell in cells)
    linked = set(re.findall(r"\]\(([^)]+\.ipynb)\)", text))
    assert linked
    assert linked | {"index.ipynb"} == {path.name for path in server[2].glob("*.ipynb")}
