"""The documentation names only files, headings and options that exist."""

import re
import subprocess
from pathlib import Path

import pytest

from ddunet_keras.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "tools/*.md",
        "tflite/**/README.md",
        "ddunet_keras/**/*.md",
    )
    for path in ROOT.glob(pattern)
)
README_LINES = 150
"""It is a front page."""


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_architecture_names_files_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## To change X")[2].partition("\n## ")[0]
    names = re.findall(r"`((?:ddunet_keras|tflite|tools)/[^`]*)`", table)
    assert len(names) > 30
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_tools_are_listed():
    listed = re.findall(
        r"^\| `(\w+\.py)`", (ROOT / "tools" / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(listed) == sorted(path.name for path in (ROOT / "tools").glob("*.py"))


def commands():
    """Every `ddunet` command that stands in a block of shell code: (page, words)."""
    for page in PAGES:
        if page.name in ("benchmark.md", "ablation.md", "ablation_width.md"):
            continue
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.partition("#")[0].split()
                if command[:1] == ["ddunet"]:
                    yield page.name, command[1:]


def options_of(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return set(re.findall(r"--[\w-]+", capsys.readouterr().out))


def test_commands_have_the_options_that_are_shown(capsys):
    shown = list(commands())
    assert len(shown) > 20
    options = {name: options_of(name, capsys) for name in {words[0] for _, words in shown}}
    for page, words in shown:
        for word in words[1:]:
            assert not word.startswith("--") or word in options[words[0]], f"{page}: {words}"


def test_readme_is_a_front_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_no_picture_is_large():
    files = subprocess.run(["git", "ls-files", "docs"], cwd=ROOT, capture_output=True, text=True)
    names = files.stdout.split()
    if not names:
        pytest.skip("not a git clone")
    assert max((ROOT / name).stat().st_size for name in names) < 200_000
