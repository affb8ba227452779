"""All pages as one static site, for reading without Jupyter: contents, search, dark mode, folded solutions.

Sphinx with myst-nb builds it from the committed outputs; nothing is executed. Nothing is fetched either, neither here
nor when a page is opened, from disk or from a plain server: formulas are MathML, widget scripts are left out, the
theme brings its fonts. (mystmd fetches its template from the network; nbconvert has no contents, search or links.)
This module is the whole configuration, and the Sphinx extension that it names.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tempfile
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hero_mini.errors import HeroError
from hero_mini.files import check_clone, writing
from hero_mini.notebooks import FOLDER, all_notebooks, read_page

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

NBVAL = "# NBVAL_CHECK_OUTPUT"  # a note to the tests, not to the reader
CARD = Path("hero_mini/adapters/README.md")
RESULTS = Path("figures/README.md")
BESIDE = ("README.md", "environment.yml", "Makefile")  # the front page, and what pages link to
ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" fill="#0072b2"/>
<path d="M4 12V4m8 8V4M4 8h8" stroke="#fff" stroke-width="2.4"/></svg>"""
CSS = Path(__file__).with_name("site.css")  # by which a site of ours is known, too
CONFIG = {
    "project": "hero_mini",
    "html_title": "hero_mini",
    "root_doc": "index",
    "include_patterns": ["index.md", f"{FOLDER}/*", str(RESULTS), str(CARD)],
    "extensions": ["myst_nb", "hero_mini.site"],
    "html_math_renderer": "mathml",
    "nb_execution_mode": "off",
    "nb_ipywidgets_js": {},
    "nb_merge_streams": True,
    "nb_render_markdown_format": "myst",
    "nb_code_prompt_show": "Show the code",
    "nb_code_prompt_hide": "Hide the code",
    "myst_enable_extensions": ["dollarmath"],
    "myst_dmath_allow_digits": False,  # "$5 and $6" are prices
    "myst_heading_anchors": 3,
    "html_theme": "sphinx_book_theme",
    "html_theme_options": {
        "footer_content_items": [],
        "home_page_in_toc": True,
        "navbar_persistent": [],  # the search field of the sidebar is enough
        "show_toc_level": 2,
        "pygments_light_style": "a11y-high-contrast-light",
        "pygments_dark_style": "a11y-high-contrast-dark",
    },
    "html_context": {"default_mode": "auto"},  # dark where the reader's system is
    "html_favicon": "icon.svg",
    "html_static_path": [str(CSS)],
    "html_css_files": [CSS.name],
    "html_show_search_summary": False,  # a browser lets no page from disk read another
    "html_show_copyright": False,
    "html_use_index": False,
}


def missing() -> list[str]:
    """The modules of the extra `site` that are not installed."""
    return [name for name in ("sphinx", "myst_nb", "sphinx_book_theme") if find_spec(name) is None]


def build(out: Path) -> Path:
    """Write the site into `out`, whole or not at all; returns its front page.

    raises HeroError: the extra is not installed, this is no clone, a page is not whole, `out` holds something else, or
        a link or a picture leads nowhere
    """
    pages = all_notebooks()
    if lacking := missing():
        raise HeroError(f"the site needs {', '.join(lacking)}: run make site, or pip install -e '.[site]'")
    check_clone(*BESIDE)
    if out.exists() and not out.is_dir():
        raise HeroError(f"{out} is a file: choose an empty folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / "_static" / CSS.name).exists():
        raise HeroError(f"{out} holds something else than a site: choose an empty folder with --out")
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
            made = sphinx(stage(Path(work, "source"), pages), Path(work, "site"))
            if out.exists():
                out.rename(Path(work, "old"))
            made.rename(out)
    return out / "index.html"


def stage(source: Path, pages: list[Path]) -> Path:
    """The folder that Sphinx reads: the README as front page with the contents, the pages, and what they link to."""
    for folder in (FOLDER, Path("figures"), Path("hero_mini")):
        shutil.copytree(folder, source / folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.safetensors"))
    for file in BESIDE[1:]:
        shutil.copy(file, source)
    lines = [f"{page.stem[:2]} {title(page)} <{page.with_suffix('').as_posix()}>" for page in pages]
    beside = [page.with_suffix("").as_posix() for page in sorted(FOLDER.glob("*.md"))]
    others = {"Results": RESULTS, "What the warm-up saw": CARD}
    beside += [f"{name} <{path.with_suffix('').as_posix()}>" for name, path in others.items()]
    readme = Path("README.md").read_text(encoding="utf-8")
    front = readme + contents("The pages", lines) + contents("Beside them", beside)
    (source / "index.md").write_text(front, encoding="utf-8")
    (source / CONFIG["html_favicon"]).write_text(ICON, encoding="utf-8")
    return source


def title(page: Path) -> str:
    return read_page(page).cells[0].source.splitlines()[0].removeprefix("# ")


def contents(caption: str, lines: list[str]) -> str:
    return "\n".join(["\n```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```\n"])


def sphinx(source: Path, out: Path) -> Path:
    """Run Sphinx on the staged folder. raises HeroError: it complains about anything"""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    complaints = io.StringIO()
    with docutils_namespace():
        app = Sphinx(source, None, out, source.with_name("doctrees"), "html", CONFIG, status=None, warning=complaints)
        app.build()
    colours = re.compile(r"\x1b\[[\d;]*m")
    if found := colours.sub("", complaints.getvalue()).replace(f"{source}/", "").strip():
        raise HeroError(f"the site has faults; mend them in the pages and try again:\n{found}")
    return out


# --- the extension ---------------------------------------------------------------------------------------------------
def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls: how notebooks are read, their headings nested, formulas and links to the repository shown."""
    app.connect("source-read", read_notebook)
    app.connect("doctree-read", nest, priority=1)  # before the contents are gathered
    app.connect("doctree-read", settle_links)
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def read_notebook(app: Sphinx, name: str, text: list[str]) -> None:
    """Solutions are folded, as what is tagged hide-input; a picture takes its alt text along, which myst-nb leaves."""
    if not app.env.doc2path(name).suffix == ".ipynb":
        return
    page = json.loads(text[0])
    for cell in page["cells"]:
        cell["source"] = [line for line in cell["source"] if line.strip() != NBVAL]
        tags = cell["metadata"].get("tags", [])
        if "solution" in tags:
            tags.append("hide-cell")
            cell["metadata"]["mystnb"] = {
                f"code_prompt_{do}": f"{do.capitalize()} the solution" for do in ("show", "hide")
            }
        for output in cell.get("outputs", []):
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                png = "".join("".join(output["data"]["image/png"]).split())
                output["data"] = {"text/html": f'<img src="data:image/png;base64,{png}" alt="{escape(alt)}">'}
    text[0] = json.dumps(page)


def nest(app: Sphinx, page: nodes.document) -> None:
    """A notebook may have several first-level headings; a page has one title, and the others are its sections."""
    from docutils import nodes

    first, *others = page.findall(lambda node: isinstance(node, nodes.section) and node.parent is page)
    for section in others:
        page.remove(section)
        first.append(section)


def settle_links(app: Sphinx, page: nodes.document) -> None:
    """README.md is the front page here; a folder of the repository has nothing to open, so its link becomes text."""
    from sphinx.addnodes import pending_xref

    here, readme = Path(app.env.doc2path(app.env.docname)).parent, Path(app.srcdir, "README.md").resolve()
    for link in list(page.findall(pending_xref)):
        path, _, part = link["reftarget"].partition("#")
        target = (here / path).resolve()
        if target == readme:
            link.attributes.update(refdomain="doc", reftarget="index", reftargetid=part or None)
        elif path and target.is_dir():
            link.replace_self(link.children)


def inline_formula(writer: object, node: nodes.math) -> None:
    write_formula(writer, node, as_block=False)


def block_formula(writer: object, node: nodes.math_block) -> None:
    write_formula(writer, node, as_block=True)


def write_formula(writer: object, node: nodes.Element, *, as_block: bool) -> None:
    from docutils.nodes import SkipNode
    from docutils.utils.math.latex2mathml import tex2mathml

    writer.body.append(tex2mathml(node.astext(), as_block=as_block))
    raise SkipNode
