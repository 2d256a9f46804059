"""What the documents say can be done, can be done."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import typer.main

from orchestrator.cli import app
from orchestrator.sweep.config import Sweep
from orchestrator.sweep.load import build_sweep, load_sweep
from tests.support.sweeps import plan_with_data
from trainables.io.yaml import load_yaml, parse_yaml

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "docs" / "sweep.schema.json").read_text())
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


def unknown_verbs(text: str) -> list[str]:
    """What follows the name of the program in code, be it a block or a span, and is no verb of it."""
    verbs = typer.main.get_command(app).commands
    found = []
    for code in re.findall(r"^```.*?^```|`[^`\n]+`", text, re.MULTILINE | re.DOTALL):
        for verb, more in re.findall(r"(?<![\w/.~-])vitc-sweep +([a-z][\w-]*)(?: +([a-z][\w-]*))?", code):
            if verb not in verbs:
                found.append(verb)
            elif hasattr(verbs[verb], "commands") and more not in verbs[verb].commands:
                found.append(f"{verb} {more}")
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_shows_no_verb_that_is_not_there(path):
    assert unknown_verbs(path.read_text()) == []


def test_a_verb_that_is_gone_is_found_in_code_and_prose_is_let_be():
    text = "So vitc-sweep draws, as `vitc-sweep run x`.\n\n```sh\nvitc-sweep plan x\nvitc-sweep gone x\n```\n"
    assert unknown_verbs(text) == ["gone"]
    assert unknown_verbs("`vitc-sweep data inform x`, `vitc-sweep data info x`") == ["data inform"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_shown_has_its_verb_and_options(path):
    command = typer.main.get_command(app)
    shown = re.findall(r"vitc-sweep ((?:data |analyse )?[a-z]+)((?: [^\n`#]*)?)", path.read_text())
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


EXAMPLES = {
    text.splitlines()[0].removeprefix("# "): text
    for text in blocks((ROOT / "docs" / "sweep-files.md").read_text(), "yaml")
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_of_a_sweep_file_can_be_planned_and_fits_the_schema(name, tmp_path):
    for file, text in EXAMPLES.items():
        (tmp_path / file).write_text(text)
    sweep = load_sweep(tmp_path / name)
    plan = plan_with_data(sweep)
    assert len({trial.arm for trial in plan.trials}) == 2
    assert len(plan.trials) >= len(sweep.all_cells()) * 2
    jsonschema.Draft202012Validator(SCHEMA).validate(load_yaml(tmp_path / name))


def test_the_table_of_keys_names_every_key_of_a_sweep_and_no_other():
    text = (ROOT / "docs" / "sweep-files.md").read_text()
    keys = re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE)
    assert sorted(keys) == sorted([*Sweep.model_fields, "extends"])


def test_the_committed_schema_is_what_the_command_prints(capsys):
    with pytest.raises(SystemExit) as end:
        app(["schema"])
    assert end.value.code in (0, None)
    assert capsys.readouterr().out == (ROOT / "docs" / "sweep.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def rows_of_settings() -> dict[str, list[list[str]]]:
    """The cells of every row of the reference, by the setting."""
    rows: dict[str, list[list[str]]] = {}
    for line in (ROOT / "docs" / "settings.md").read_text().splitlines():
        if found := re.match(r"\| `([\w.]+)` \|", line):
            rows.setdefault(found[1], []).append(
                [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[2:-1]]
            )
    return rows


def test_the_committed_reference_of_settings_is_what_the_command_prints(capsys):
    with pytest.raises(SystemExit) as end:
        app(["schema", "--markdown"])
    assert end.value.code in (0, None)
    assert capsys.readouterr().out == (ROOT / "docs" / "settings.md").read_text()


def test_the_reference_has_every_setting_that_the_schema_completes():
    paths = set(SCHEMA["$defs"]["Settings"]["properties"])
    # A percentage is written as one word, and a first run has the settings of a run.
    wanted = {path for path in paths if not re.search(r"\.share$|^start\.run\.", path)}
    assert wanted <= set(rows_of_settings())
    assert set(Sweep.model_fields) <= set(rows_of_settings())


def test_every_setting_has_values_a_default_and_a_meaning():
    for path, rows in rows_of_settings().items():
        for cells in rows:
            if len(cells) == 3:
                assert all(cells), path


def test_the_reference_answers_what_was_asked_of_it():
    rows = rows_of_settings()
    # Typed in from the types, not from the page.
    assert rows["data.train_limit"][0][:2] == ["whole number above 0", "none"]
    assert rows["data.val_share"][1][:2] == ["number above 0 below 0.5", "`0.1`"]
    assert rows["schedule.warmup"][0][:2] == ["number from 0 or a part of the run, as `10%`", "`10%`"]
    assert rows["optim.lr"][0][1] == "required"
    assert [row[0] for row in rows["optim.name"]] == ["`adamw`", "`sgd`", "`lion`", "`lamb`", "`muon`"]


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_search_space_names_the_schema_and_fits_it(path):
    [named] = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", path.read_text(), re.MULTILINE)
    assert (path.parent / named).resolve() == ROOT / "docs" / "sweep.schema.json"
    jsonschema.Draft202012Validator(SCHEMA).validate(load_yaml(path))
