"""How Sphinx builds the documentation: `make docs`, without the network."""

from __future__ import annotations

import sys
from pathlib import Path

from hf_plr import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "hf-plr"
author = "the authors of hf-plr"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated_arguments"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"hf-plr {version}"
html_show_copyright = False
html_show_sourcelink = False

# Links to headings of other pages, as the pages on a code host have them.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]

# Docstrings are in the style of Google; a name in single backticks is linked where there is an entry for it.
smartquotes = False  # two hyphens are a flag
default_role = "py:obj"
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {
    "exclude-members": "set_fit_request, set_predict_request, set_score_request"
}  # scikit-learn's
html_static_path = ["_static"]
html_css_files = ["pages.css"]
