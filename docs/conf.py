"""The documentation as a site: `bash scripts/docs.sh` builds it, strictly, as files that a browser opens from disk."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from mwork_jax import __version__  # noqa: E402  of this checkout, installed or not

project = "mwork-jax"
author = "The mwork-jax authors"
project_copyright = "The mwork-jax authors. Licence: Apache-2.0"
release = version = __version__
language = "en"

extensions = ["sphinx.ext.autodoc", "myst_nb", "site_extension"]
exclude_patterns = ["_build"]
highlight_language = "none"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks keep what `python scripts/notebooks.py` had them print
nb_merge_streams = True

# Every public name and every typed result that a page mentions has to be documented.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!mwork_jax\.[a-zA-Z]\w*$|mwork_jax\.results\.[A-Z]\w).*")]
nitpick_ignore = [("py:class", "mwork_jax.Observed")]  # a type variable
default_role = "py:obj"
add_module_names = False
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"

# Equations are MathML, which browsers draw themselves: nothing has to be fetched from anywhere.
html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "mwork-jax"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_last_updated_fmt = None
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_sidebars = {"**": ["globaltoc.html"]}
html_theme_options = {
    "navbar_center": [],
    "globaltoc_includehidden": True,
    "globaltoc_maxdepth": 1,
    "collapse_navigation": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
