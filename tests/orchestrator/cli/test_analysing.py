"""`analyse collapse` from kept weights to files and report, on trials that were really trained."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.cli.app import BAD_INPUT, OK
from orchestrator.store.folder import open_folder, save_question
from orchestrator.store.journal import Writer
from orchestrator.store.weights import KeptWeights, WeightStore
from orchestrator.trials.events import AttemptBegan, AttemptEnded, EpochDone, RetryWanted
from orchestrator.trials.names import name_of
from orchestrator.trials.plan import Plan
from orchestrator.trials.trial import unique_trials
from tests.support.sweeps import TINY, plan_from, sweep_tree, tiny_base
from trainables.context import Context
from trainables.training.loop import finished_run, train
from trainables.training.transfer import final_weights

Cli = Callable[..., tuple[int, str, str]]
WRITTEN = {"collapse.json", "collapse.csv", "collapse~all.svg", "collapse~all.pdf"}


def tree(**changes: Any) -> dict[str, Any]:
    """Two arms of family vit, the second with batch norm and a block less, and one of another family."""
    base = tiny_base(model=TINY | {"depth": 4}, schedule={"epochs": 1}, ema={}, precise_bn_images=256)
    arms = {
        "p": {"model.stem": "patchify"},
        "c": {"model.stem": "conv"},
        "other": {"model": {"family": "timm", "name": "test_resnet", "image_size": 32}},
    }
    return sweep_tree(base=base, arms=arms, design={"kind": "sobol", "points": 2}) | changes


def train_all(folder: Path, plan: Plan, keep: Callable[[str], bool]) -> Path:
    """Trains each trial of a plan by the library, with a journal and kept weights as a run leaves them."""
    save_question(folder, plan, made=0.0)
    writer, states = Writer(folder), WeightStore(folder)
    for trial in unique_trials(plan.trials):
        writer.append([AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=0.0)])
        for row, state in train(trial.config, Context()):  # noqa: B007
            writer.append([EpochDone(trial=trial.id, attempt=1, row=row)])
        if keep(name_of(trial)):
            states.keep(KeptWeights(trial.id, f"{trial.arm}", row.val_error_pct), state.save_weights)
        end = {"attempt": 1, "end": "finished", "detail": "", "seconds": 1.0, "time": 1.0, "final": True}
        writer.append([AttemptEnded(trial=trial.id, weights=state.weights_digest(), **end)])
    writer.close()
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    return train_all(folder, plan_from(tree()), lambda name: name != "c/all/1")


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A sweep folder of one's own: p/0, p/1, c/0 and the trials of `other` have weights, c/1 has none."""
    return Path(shutil.copytree(trained, tmp_path / "small"))


def content(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "analysis/collapse/collapse.json").read_text())
    return loaded


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def cosines(folder: Path, name: str) -> np.ndarray:
    """The mean similarity by pair of blocks of a trial, by loops over images, heads and tokens."""
    opened = open_folder(folder)
    [trial] = [trial for trial in opened.plan.trials if name_of(trial) == name]
    splits, info = trial.config.data.open(), trial.config.data.info()
    with WeightStore(folder).open_kept(trial.id) as file:
        run = finished_run(trial.config, Context(), info, splits["train"], final_weights(file))
    network, seen = run.judged_network().eval(), []
    for block in network.blocks:
        block.attn.observer = lambda soft, _: seen.append(soft.double().numpy())
    with torch.no_grad():
        for images, _ in run.pipeline.eval_batches(splits["val"], 1000):
            network(images)
    blocks = len(seen)
    found = np.zeros((blocks, blocks))
    for p in range(blocks):
        for q in range(blocks):
            values = []
            for a, b in zip(seen[p], seen[q], strict=True):
                for head in range(a.shape[0]):
                    for token in range(a.shape[-1]):
                        x, y = a[head, :, token], b[head, :, token]
                        values.append(x @ y / np.sqrt(x @ x) / np.sqrt(y @ y))
            found[p, q] = np.mean(values)
    return found


def test_all_trials_with_kept_weights_and_maps_are_looked_at(cli: Cli, folder: Path) -> None:
    before = files(folder)
    # More than the selection split has.
    code, out, err = cli("analyse", "collapse", folder, "--images", 100_000)
    assert code == OK
    assert all(re.fullmatch(r"\w/all/\d \(\d of 3\): \d+ of \d+ images", line) for line in err.splitlines())
    assert files(folder) - before == {f"analysis/collapse/{name}" for name in WRITTEN}
    found = content(folder)
    assert [trial["name"] for trial in found["trials"]] == ["p/all/0", "c/all/0", "p/all/1"]
    config = open_folder(folder).plan.trials[0].config
    assert {trial["num_images"] for trial in found["trials"]} == {len(config.data.open()["val"])}
    assert [trial["num_blocks"] for trial in found["trials"]] == [4, 3, 4]
    # 16 pixels in patches of 8.
    assert [one["num_tokens"] for one in found["trials"][0]["found"]] == [5, 4]
    assert [(one["arm"], one["tokens"], one["num_trials"]) for one in found["arms"]] == [
        ("p", "all", 2),
        ("p", "patches", 2),
        ("c", "all", 1),
        ("c", "patches", 1),
    ]
    for trial in found["trials"]:
        # Nothing changes the maps of these networks, so they are told once.
        assert {one["maps"] for one in trial["found"]} == {"softmax"}
        expected = cosines(folder, trial["name"])
        assert np.allclose(trial["found"][0]["matrix"], expected, atol=1e-5)
    assert max(map(len, out.splitlines()[:12])) <= 80
    assert all(f"analysis/collapse/{name}" in out for name in WRITTEN)


def test_the_weights_are_those_that_the_error_was_measured_with(folder: Path) -> None:
    opened = open_folder(folder)
    for trial in opened.plan.trials:
        if name_of(trial) not in ("p/all/0", "c/all/0"):
            continue
        splits, info = trial.config.data.open(), trial.config.data.info()
        with WeightStore(folder).open_kept(trial.id) as file:
            run = finished_run(trial.config, Context(), info, splits["train"], final_weights(file))
        last = opened.records[trial.id].last
        assert last is not None
        score = run.evaluate_as_is(run.judged_network(), splits["val"])
        assert (score.error_pct, score.loss) == (last.val_error_pct, pytest.approx(last.val_loss, rel=1e-6))


def test_csv_has_a_row_per_trial_and_block(cli: Cli, folder: Path) -> None:
    assert cli("analyse", "collapse", folder, "p/0", "c/0", "--images", 50)[0] == OK
    rows = list(csv.DictReader(io.StringIO((folder / "analysis/collapse/collapse.csv").read_text())))
    assert [(row["arm"], row["block"]) for row in rows] == [
        *(("p", str(block)) for block in (1, 2, 3, 4)),
        *(("c", str(block)) for block in (1, 2, 3)),
    ]
    assert rows[0]["similarity"] == "" != rows[1]["similarity"]
    trial = content(folder)["trials"][0]
    assert trial["num_images"] == 50
    assert float(rows[2]["similarity"]) == trial["found"][0]["matrix"][1][2]
    assert float(rows[2]["patches_entropy"]) == trial["found"][1]["entropy"][2]
    assert float(rows[2]["uniform_similarity"]) == 1.0


def test_json_is_what_the_file_holds(cli: Cli, folder: Path) -> None:
    code, out, _ = cli("analyse", "collapse", folder, "p/0", "--images", 20, "--json")
    assert code == OK
    assert json.loads(out) == content(folder)


@pytest.mark.usefixtures("no_pdfs")
def test_the_report_takes_it_and_verifies_with_and_without_it(cli: Cli, folder: Path) -> None:
    def summary() -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((folder / "report/summary.json").read_text())
        return loaded

    cli("report", folder)
    assert cli("verify", folder)[0] == OK
    assert "collapse" not in summary()
    assert cli("analyse", "collapse", folder, "--images", 100_000)[0] == OK
    code, out, _ = cli("verify", folder)
    assert (code, "was written after the report" in out) == (OK, True)
    cli("report", folder)
    code, out, _ = cli("verify", folder)
    assert (code, "note: analysis" in out) == (OK, False), out
    rows = summary()["collapse"]
    assert [(row["arm"], row["tokens"], row["num_trials"]) for row in rows][::2] == [
        ("p", "all", 2),
        ("c", "all", 1),
    ]
    first = np.mean([np.diagonal(cosines(folder, f"p/all/{point}"), 1).mean() for point in (0, 1)])
    assert rows[0]["similarity"] == pytest.approx(first, abs=1e-5)
    told = set(re.findall(r"`(\w+)`", (Path(__file__).parents[3] / "docs" / "report.md").read_text()))
    assert {"collapse", *rows[0]} <= told
    code, out, _ = cli("bundle", folder, "--out", folder.parent / "small.tar.gz")
    assert (code, "verified: " in out) == (OK, True)
    page = (folder / "report/report.html").read_text()
    assert '<h2 id="collapse">Attention maps</h2>' in page
    assert 'id="collapse~all"' in page
    assert (folder / "report/figures/collapse~all.svg").is_file()
    # What is changed by hand shows.
    path = folder / "analysis/collapse/collapse.json"
    path.write_text(path.read_text().replace('"point": 0', '"point": 7', 1))
    code, out, _ = cli("verify", folder)
    assert (code, "analysis/collapse/collapse.json" in out) == (1, True)
    path.write_text("{")
    code, _, err = cli("report", folder)
    assert (code, "collapse.json is damaged" in err, str(folder) in err) == (BAD_INPUT, True, True)


@pytest.mark.usefixtures("no_pdfs")
def test_weights_that_changed_since_are_left_out_with_a_line(cli: Cli, folder: Path) -> None:
    assert cli("analyse", "collapse", folder, "--images", 20)[0] == OK
    plan = open_folder(folder).plan
    writer = Writer(folder)
    writer.append([RetryWanted(trial=plan.trials[0].id, time=2.0)])
    writer.close()
    cli("report", folder)
    assert "collapse" not in json.loads((folder / "report/summary.json").read_text())
    page = (folder / "report/report.html").read_text()
    assert f"Left out: {name_of(plan.trials[0])} has other weights" in page
    assert "collapse~all" not in page
    assert cli("verify", folder)[0] == OK


def test_all_that_is_wrong_with_named_trials_is_told_at_once_and_nothing_written(
    cli: Cli, folder: Path
) -> None:
    before = files(folder)
    code, out, err = cli("analyse", "collapse", folder, "p/0", "c/1", "other/0", "nobody/3")
    assert (code, out) == (BAD_INPUT, "")
    assert len(err.splitlines()) == 3
    assert "no trial is called 'nobody/3'" in err
    assert "c/all/1: its weights were not kept. Set `resources: {keep: best}`" in err
    assert "other/all/0: family timm has no attention maps" in err
    assert files(folder) == before


def test_a_sweep_without_kept_weights_is_told_how_to_keep_them(cli: Cli, folder: Path) -> None:
    shutil.rmtree(folder / "trials")
    code, _, err = cli("analyse", "collapse", folder)
    assert code == BAD_INPUT
    assert "no weights were kept" in err
    assert "keep: best" in err
    assert not (folder / "analysis").exists()


def test_kept_networks_without_maps_are_told(cli: Cli, folder: Path) -> None:
    for trial in open_folder(folder).plan.trials:
        if trial.arm != "other":
            WeightStore(folder).delete_kept(trial.id)
    code, _, err = cli("analyse", "collapse", folder)
    assert (code, "no kept network has attention maps" in err) == (BAD_INPUT, True)


def test_weights_of_another_run_and_damaged_ones_are_refused(cli: Cli, folder: Path) -> None:
    ids = {name_of(trial): trial.id for trial in open_folder(folder).plan.trials}
    trials = folder / "trials"
    shutil.copy(trials / ids["p/all/1"] / "final.pt", trials / ids["p/all/0"] / "final.pt")
    (trials / ids["c/all/0"] / "final.pt").write_bytes(b"no weights")
    code, _, err = cli("analyse", "collapse", folder)
    assert code == BAD_INPUT
    assert "p/all/0: its kept weights are not those of the journal; `vitc-sweep retry" in err
    assert "c/all/0: the file to start from holds no weights" in err
    assert not (folder / "analysis").exists()


@pytest.mark.parametrize("option", [("--threshold", "0"), ("--threshold", "1"), ("--images", "0")])
def test_numbers_that_mean_nothing_are_refused(cli: Cli, folder: Path, option: tuple[str, str]) -> None:
    code, _, err = cli("analyse", "collapse", folder, *option)
    assert (code, option[0] in err) == (BAD_INPUT, True)
    assert not (folder / "analysis").exists()
