"""Sphinx settings of the site that `./task site` makes (labkit/site.py stages the pages and calls Sphinx)."""

project = "Noisy-neighbour lab"
author = "the lab's authors"
extensions = ["myst_nb"]
root_doc = "index"

# Pages show what a run left. Nothing is executed here.
nb_execution_mode = "off"
# By default the pages would fetch require.js and the widgets' code from a CDN.
nb_ipywidgets_js: dict[str, object] = {}
nb_merge_streams = True
nb_number_source_lines = False
nb_mime_priority_overrides = [
    ("html", "application/javascript", None),
    ("html", "application/vnd.jupyter.widget-view+json", None),
]
myst_heading_anchors = 4
# Chapters are written for Jupyter: what only MyST gives a meaning is text here.
myst_disable_syntax = ["myst_line_comment", "myst_block_break", "myst_target", "myst_role"]
suppress_warnings = ["myst.header"]  # a chapter may begin with any level of heading

html_theme = "furo"
html_title = "Noisy-neighbour lab"
html_static_path = ["_static"]
html_css_files = ["lab.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "sidebar_hide_name": False,
    "navigation_with_keys": True,
}
pygments_style = "default"
pygments_dark_style = "monokai"
