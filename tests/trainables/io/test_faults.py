"""Messages for faulty sweep files as users see them.

`python tests/trainables/io/test_faults.py` writes the golden files again.
"""

import contextlib
import io
import sys
from pathlib import Path

import jsonschema
import pytest

from orchestrator.cli.app import main
from orchestrator.sweep.json_schema import sweep_schema
from trainables.io.yaml import YamlError, load_yaml

FAULTY = sorted((Path(__file__).parents[2] / "golden" / "faults").glob("*.yaml"))
#: What is set on the command line beside.
OPTIONS = {"set_on_top": ["--set", "optim.lrr=1", "--set", "model.size=2gf", "--set", "design.pionts=4"]}
#: A schema cannot know what a name in the same file refers to, nor what a run makes of settings together.
NOT_FOR_A_SCHEMA = {
    "address_of_data",
    "address_of_states",
    "constraint_that_leaves_nothing",
    "constraint_that_means_nothing",
    "constraints_that_cannot_be_read",
    "extends_a_missing_file",
    "extends_itself",
    "fault_in_the_extended_file",
    "name_that_empties",
    "looks_of_a_search",
    "names_that_lead_nowhere",
    "said_twice",
    "set_on_top",
    "values_that_do_not_go_together",
}


def message(path: Path) -> str:
    """What `vitc-sweep plan` says of a file, with the folder it stands in left out."""
    out, err = io.StringIO(), io.StringIO()
    arguments, sys.argv = sys.argv, ["vitc-sweep", "plan", str(path), *OPTIONS.get(path.stem, [])]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = arguments
    assert (code, out.getvalue()) == (2, "")
    return err.getvalue().replace(f"{path.resolve().parent}/", "").replace(f"{path.parent}/", "")


@pytest.mark.parametrize("path", FAULTY, ids=lambda path: path.stem)
def test_a_faulty_file_gets_the_message_that_was_read_and_found_good(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message(path) == path.with_suffix(".txt").read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", FAULTY, ids=lambda path: path.stem)
def test_the_schema_refuses_the_faults_that_a_schema_can_know(path):
    try:
        tree = load_yaml(path)
    except YamlError:
        return
    refused = not jsonschema.Draft202012Validator(sweep_schema()).is_valid(tree)
    assert refused == (path.stem not in NOT_FOR_A_SCHEMA)


if __name__ == "__main__":
    for faulty in FAULTY:
        faulty.with_suffix(".txt").write_text(message(faulty))
        print(faulty.with_suffix(".txt").read_text())
