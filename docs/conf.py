"""How the site is built: `make site`."""

from __future__ import annotations

import gaiadask

project = "gaiadask"
author = "the authors of gaiadask"
version = release = gaiadask.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
exclude_patterns = ["schemas"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "furo"
html_title = "gaiadask"
