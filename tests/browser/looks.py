"""What one looks at besides the text of a page: can it be read, does it fit, are its figures sharp?"""

from __future__ import annotations

from playwright.sync_api import Page

#: Text below ``root`` whose contrast with what is behind it is too low: 4.5 to 1 (WCAG 2.1, 1.4.3); 3 in outputs, which
#: have one colour for both themes (none can reach 4.5 on white and on black); 2.5 in code, whose colours are the theme's.
#: Colours are laid over each other as the browser does, and a parent's opacity counts.
_FAINT = """([root, outputs, code]) => {
    const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const parts = colour => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
    const over = ([r, g, b, a], under) => [r, g, b].map((v, i) => a * v + (1 - a) * under[i]);
    const behind = node => {
        const layers = [];
        for (; node; node = node.parentElement) {
            const colour = parts(getComputedStyle(node).backgroundColor);
            if (colour[3]) layers.push(colour);
            if (colour[3] === 1) break;
        }
        return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
    };
    const opacity = node => {
        let all = 1;
        for (; node; node = node.parentElement) all *= Number(getComputedStyle(node).opacity);
        return all;
    };
    const found = [];
    for (const node of document.querySelectorAll(`${root} *`)) {
        if (node.closest('.jp-InputPrompt, .jp-OutputPrompt')) continue;  // JupyterLab's own
        const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
        if (!own || !node.checkVisibility() || !node.getClientRects().length) continue;
        const colour = parts(getComputedStyle(node).color);
        const under = behind(node);
        colour[3] *= opacity(node);
        const [a, b] = [light(over(colour, under)), light(under)];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const needed = node.closest(code) ? 2.5 : node.closest(outputs) ? 3 : 4.5;
        if (contrast < needed) found.push(`${contrast.toFixed(1)}: ${node.textContent.trim().slice(0, 40)}`);
    }
    return [...new Set(found)];
}"""

#: What is wider than its place: it is cut off, or one has to push it to and fro to read it.
_WIDE = """root => [...document.querySelectorAll(root)].flatMap(place => [place, ...place.querySelectorAll('*')])
    .filter(node => node.checkVisibility() && node.clientWidth > 0 && node.scrollWidth > node.clientWidth + 1
        && getComputedStyle(node).display !== 'inline' && !node.closest('svg, mjx-container'))
    .map(node => `${node.scrollWidth} in ${node.clientWidth} px: ${node.textContent.trim().slice(0, 60)}`)"""

_FRONT = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook"
_CODE = ".cm-editor, .highlight"
_FIGURES = f"""() => [...document.querySelectorAll('{_FRONT} .jp-OutputArea-output img')]
    .map(img => ({{shown: img.clientWidth, natural: img.naturalWidth, room: img.closest('.jp-OutputArea').clientWidth}}))"""


def faint_on_site(page: Page) -> list[str]:
    """Text of a page of the site that can hardly be read."""
    found: list[str] = page.evaluate(_FAINT, ["article", ".cell_output", ".highlight, .headerlink"])
    return found


def faint_in_notebook(page: Page) -> list[str]:
    """Text of the notebook in front that can hardly be read."""
    found: list[str] = page.evaluate(_FAINT, [f"{_FRONT} .jp-Cell", ".jp-OutputArea-output", _CODE])
    return found


def wide_in_notebook(page: Page) -> list[str]:
    """What is wider than its place in the text and the outputs of the notebook in front."""
    found: list[str] = page.evaluate(_WIDE, f"{_FRONT} .jp-OutputArea-output, {_FRONT} .jp-MarkdownOutput")
    return found


def figures_in_notebook(page: Page) -> list[dict[str, int]]:
    """The figures of the notebook in front: ``shown`` and ``natural`` width, and the ``room`` that they have."""
    found: list[dict[str, int]] = page.evaluate(_FIGURES)
    return found
