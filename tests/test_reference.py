"""The reference page is what the program says of itself."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_reference_is_up_to_date():
    page = runpy.run_path(str(DOCS / "make_reference.py"))["page"]()
    assert (DOCS / "reference.md").read_text(encoding="utf-8") == page, "run: python docs/make_reference.py"
    assert page.count("\n### ") > 30 and "None\n```" not in page
