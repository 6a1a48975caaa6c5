"""The documentation site: ``python -m sphinx -W --keep-going -b html docs OUT``, with the extra ``docs``."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from zennit_attn import __version__  # noqa: E402

project = "zennit-attn"
author = "the zennit-attn developers"
copyright = "2026, the zennit-attn developers"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# links to headings are written as GitHub makes them
myst_heading_anchors = 3

autodoc_member_order = "bysource"
# types are in the docstrings
autodoc_typehints = "none"
napoleon_google_docstring = False
# "Attributes" of a docstring, and not a second time by autodoc
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"zennit-attn {release}"
html_static_path = ["_static"]
html_css_files = ["wide-tables.css"]
