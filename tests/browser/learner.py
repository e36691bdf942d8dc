"""JupyterLab as a learner uses it: open a notebook, run it, read what is below a cell, type into one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

#: A chapter takes 10 to 30 s on an idle machine of two cores; others may be working on this one.
LIMIT_MS = 240_000
WIDTH, HEIGHT, PIECE = 1360, 900, 1900


@dataclass
class Lab:
    """One browser window on one server.

    :ivar outside: addresses that the window asked for and that are not the server's.
    :ivar complaints: errors on the browser's console.
    """

    page: Page
    address: str
    folder: Path
    log: Path
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, browser: Browser, address: str, folder: Path, log: Path) -> Lab:
        # Two device pixels to one of the page, as on most laptops: there blurred figures show.
        context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=2)
        context.set_default_timeout(120_000)  # others may be working on this machine
        lab = cls(context.new_page(), address, folder, log)
        base = address.split("/lab")[0]
        lab.page.on(
            "request",
            lambda sent: (
                None if sent.url.startswith((base, "data:", "blob:")) else lab.outside.append(sent.url)
            ),
        )
        lab.page.on(
            "console", lambda said: lab.complaints.append(said.text) if said.type == "error" else None
        )
        lab.page.goto(address)
        lab.page.wait_for_selector(".jp-Notebook .jp-MarkdownOutput h1")
        return lab

    def theme(self, name: str) -> None:
        """``JupyterLab Light`` or ``JupyterLab Dark``."""
        self.page.evaluate(
            "name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name
        )
        light = "true" if name.endswith("Light") else "false"
        self.page.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")

    def open_notebook(self, name: str) -> None:
        """Open (or come back to) a notebook by its name and wait for its kernel."""
        self.page.evaluate(
            "async path => { await jupyterapp.commands.execute('docmanager:open', {path}); }", name
        )
        self.page.wait_for_function(
            """async path => {
                const panel = jupyterapp.shell.currentWidget;
                if (!panel || !panel.context || panel.context.path !== path || !panel.sessionContext) return false;
                await panel.context.ready; await panel.sessionContext.ready;
                return panel.sessionContext.session?.kernel?.status === 'idle';
            }""",
            arg=name,
            timeout=LIMIT_MS,
        )

    def run_all(self) -> None:
        """Run all cells of the notebook in front, and wait until the last one is done."""
        self.page.evaluate("async () => { await jupyterapp.commands.execute('notebook:run-all-cells'); }")
        self.settle()

    def settle(self) -> None:
        """Wait until every code cell that was started is done."""
        self.page.wait_for_function(
            """() => {
                const panel = jupyterapp.shell.currentWidget;
                const code = panel.content.widgets.filter(cell => cell.model.type === 'code');
                const busy = code.some(cell => cell.model.executionState && cell.model.executionState !== 'idle');
                return !busy && panel.sessionContext.session.kernel.status === 'idle';
            }""",
            timeout=LIMIT_MS,
        )

    def save_and_close(self) -> None:
        """Save the notebook in front, end its kernel, close its tab."""
        self.page.evaluate(
            """async () => {
                const panel = jupyterapp.shell.currentWidget;
                await panel.context.save();
                await panel.sessionContext.shutdown();
                panel.close();
            }"""
        )

    def cells(self) -> list[dict[str, Any]]:
        """The cells of the notebook in front, as they would be saved."""
        found: list[dict[str, Any]] = self.page.evaluate(
            "jupyterapp.shell.currentWidget.content.model.toJSON().cells"
        )
        return found

    def position(self, tag: str) -> int:
        """Where the cell with a tag stands."""
        (found,) = (at for at, cell in enumerate(self.cells()) if tag in cell["metadata"].get("tags", []))
        return found

    def type_and_run(self, at: int, text: str) -> str:
        """Replace a code cell's text by typing, run it by Shift+Enter, and return the text that appears below it."""
        self.page.evaluate(
            """async at => {
                const notebook = jupyterapp.shell.currentWidget.content;
                notebook.activeCellIndex = at;
                await notebook.scrollToItem(at, 'center');
                await notebook.activeCell.ready;
                notebook.activeCell.model.executionCount = null;  // a new kernel counts from 1 again
            }""",
            at,
        )
        cell = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell.jp-mod-active")
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(text)
        self.page.keyboard.press("Shift+Enter")
        self.page.wait_for_function(
            "at => jupyterapp.shell.currentWidget.content.widgets[at].model.executionCount > 0",
            arg=at,
            timeout=LIMIT_MS,
        )
        self.settle()
        shown: str = self.page.evaluate(
            "at => jupyterapp.shell.currentWidget.content.widgets[at].outputArea.node.innerText", at
        )
        return shown

    def pictures(self, folder: Path, name: str) -> None:
        """Screenshots of the whole notebook in front, a high window each: ``NAME-1.png``, ``NAME-2.png``, ..."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{name}-*.png"):
            old.unlink()
        self.page.set_viewport_size({"width": WIDTH, "height": PIECE})
        scroll = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer"
        shown, total = self.page.evaluate(
            "where => { const node = document.querySelector(where); return [node.clientHeight, node.scrollHeight]; }",
            scroll,
        )
        for count, top in enumerate(range(0, max(total, 1), max(shown, 1)), start=1):
            self.page.evaluate(
                "([where, top]) => { document.querySelector(where).scrollTop = top; }", [scroll, top]
            )
            self.page.wait_for_timeout(300)
            self.page.screenshot(path=folder / f"{name}-{count}.png", scale="css")
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
