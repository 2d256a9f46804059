"""What the documents say can be done, can be done."""

import re
from pathlib import Path

import pytest
import typer.main

from orchestrator.cli import app
from orchestrator.sweep import build_sweep, load_sweep
from trainables.yaml import parse_yaml

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "cluster").glob("*.md")])


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_sweep_in_the_readme_is_one():
    found = blocks((ROOT / "README.md").read_text(), "yaml")
    assert found
    for text in found:
        sweep = build_sweep(parse_yaml(text, "README") | {"name": "readme"}, "README")
        assert len(sweep.arms) > 1


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_search_space_loads_and_says_how_to_run_it(path):
    assert load_sweep(path).question
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# vitc-sweep run {path.relative_to(ROOT)}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_shown_has_its_verb_and_options(path):
    command = typer.main.get_command(app)
    shown = re.findall(r"vitc-sweep ((?:data )?[a-z]+)((?: [^\n`#]*)?)", path.read_text())
    for verb, rest in shown:
        found = command
        for word in verb.split():
            # In prose the name of the program is followed by ordinary words.
            if word not in found.commands:
                break
            found = found.commands[word]
        else:
            options = {
                name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)
            }
            for option in re.findall(r"(?<= )--[a-z-]+", rest):
                assert option in options, f"{verb} {option}"
