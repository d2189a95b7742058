"""The site: `python -m sphinx -W docs build/site`.

Notebooks are shown with their stored outputs. With EXECUTE_NOTEBOOKS=true they
are run.
"""

import os
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# ruff: noqa: E402
import inventories
from sources import asked, digest

import alchemi_jax


project = "alchemi_jax"
author = "The authors of alchemi_jax"
version = release = alchemi_jax.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    # In docs/_ext.
    "docstrings",
    "names",
    "signatures",
    "fields",
    "formulas",
    "commands",
    "breaks",
]
exclude_patterns = [
    "_build",
    "_ext",
    "notebooks/.ipynb_checkpoints",
    "**/.virtual_documents",
]
# Quotes and dashes as they are written: `--cell`.
smartquotes = False
html_math_renderer = "mathml"

# -- Pages and notebooks --------------------------------------------------

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
# Notebooks are stored with outputs, by notebooks/run.py. When they are run
# here, the cache knows them by the code of their cells. It has to notice
# changes of the package too, so there is one for each state of its files.
nb_execution_mode = "cache" if asked("EXECUTE_NOTEBOOKS") else "off"
nb_execution_cache_path = str(
    ROOT / "build" / "notebooks" / digest(ROOT / "alchemi_jax")
)
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True
# Of a 3D view the page shows the HTML; `notebooks/run.py` leaves the rest out.
suppress_warnings = ["mystnb.unknown_mime_type"]

# -- Reference ------------------------------------------------------------

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "show-inheritance": True,
}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# Methods that override are described where they are declared.
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = True
toc_object_entries_show_parents = "hide"
# Arguments as a list of names; several may share a line: "hot, cold: ...".
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]
viewcode_line_numbers = True

intersphinx_mapping = inventories.mapping(ROOT / "build" / "inventories")
intersphinx_timeout = 10

# -- Looks ----------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = f"alchemi_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = True
html_copy_source = True
html_sidebars = {"index": [], "reference/changelog": []}
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "show_prev_next": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "secondary_sidebar_items": ["page-toc", "edit-this-page", "sourcelink"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}
copyright = "the authors of alchemi_jax, Apache-2.0"

# The link to edit a page needs a public repository: `[project.urls]` of
# pyproject.toml says where it is.
with open(ROOT / "pyproject.toml", "rb") as _file:
    _urls = tomllib.load(_file)["project"].get("urls", {})
_repository = _urls.get("Repository", "").rstrip("/")
if _repository:
    html_context = {
        "edit_page_url_template": _repository
        + "/edit/main/docs/{{ file_name }}",
        "edit_page_provider_name": "the repository",
    }
    html_theme_options["use_edit_page_button"] = True
    html_theme_options["icon_links"] = [
        {
            "name": "Repository",
            "url": _repository,
            "icon": "fa-solid fa-code-branch",
        }
    ]
