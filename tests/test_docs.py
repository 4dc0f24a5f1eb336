"""Every code block of README.md and docs/ runs, in the order of its page, in an empty folder of the page.

Blocks in `python` and `bash` are executed; the Python blocks of a page share their names. A block that cannot run
here carries its reason on the line before: `<!-- not run: it needs a GPU -->`. Links between pages must lead somewhere.
README.md's commands are started as a user starts them; those of the other pages run in this process, where they need
not import and compile everything anew.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hetmodels.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = r"(?P<mark><!-- not run: [^\n]+ -->\n)?"
BLOCK = re.compile(MARK + r"^```(?P<language>python|bash)\n(?P<code>.*?)^```$", re.M | re.S)


def blocks(text: str) -> list[tuple[int, str, str]]:
    """Line, language and code of each block to be run."""
    found = [match for match in BLOCK.finditer(text) if not match["mark"]]
    return [(text[: match.start("code")].count("\n"), match["language"], match["code"]) for match in found]


RUNNABLE = [page for page in PAGES if blocks(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for line, language, code in blocks(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile("\n" * line + code, page, "exec"), names)
        elif page.name != "README.md" and plain_commands(code):
            for words in map(shlex.split, code.splitlines()):
                assert main(words[1:]) == 0, f"{page}:{line + 1} {shlex.join(words)}"
        else:
            started_by_a_shell(code, f"{page}:{line + 1}")


def plain_commands(code: str) -> bool:
    """Whether each line is a command of the program that leaves nothing for a shell to do."""
    return all(re.fullmatch(r"hetmodels [^|&;<>$`*\\]+", line) for line in code.splitlines())


def started_by_a_shell(code: str, where: str) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    words = ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{where}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}, which is not there."


def test_the_parser_of_blocks_sees_what_runs_and_what_does_not():
    skipped = "<!-- not run: why -->\n```bash\nfalse\n```\n"
    text = f"a\n```python\nx = 1\n```\n\n{skipped}```text\ny\n```\n```bash\ntrue\n```\n{skipped}"
    assert blocks(text) == [(2, "python", "x = 1\n"), (13, "bash", "true\n")]


def test_the_readme_and_the_first_steps_are_among_the_pages_that_run():
    assert {"README.md", "start.md", "family.md", "engine.md", "volume.md"} <= {page.name for page in RUNNABLE}
