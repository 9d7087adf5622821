"""How Sphinx builds the documentation: `make docs`, without the network."""

from __future__ import annotations

from hf_plr import __version__

project = "hf-plr"
author = "the authors of hf-plr"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"hf-plr {version}"
html_show_copyright = False
html_show_sourcelink = False

# Links to headings of other pages, as the pages on a code host have them.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]

# Docstrings are in the style of Google; a name in single backticks is linked where there is an entry for it.
default_role = "py:obj"
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
