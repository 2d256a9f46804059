"""Writes docs/results.md: the results of finished sweeps next to the claims of the paper.

    python -m benchmarks.results runs/lr_wd runs/optimizer_gap [--out docs/results.md] [--extend]

Questions, verdicts with intervals, and costs are computed from the folders' journals. The paper's claims are
in the sweep files (`paper.claims`). Figures are copied from the folders' reports to a folder next to the
document. An unfinished sweep is listed without a verdict. With --extend, sections of other sweeps in the
document stay as they are, so that not all folders have to be kept.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.analysis.contrasts import Contrast
from orchestrator.analysis.findings import Findings, gather
from orchestrator.analysis.gaps import CLAIMED, claimed
from orchestrator.report.answer import answer_of
from orchestrator.report.document import total_cost
from orchestrator.report.tables_pooled import headline_pooled, pooled_sentence
from orchestrator.stats.intervals import Estimate
from orchestrator.stats.measures import MEASURES
from orchestrator.store.folder import Folder, open_folder
from orchestrator.sweep.paper import Claim
from orchestrator.trials.numerals import duration
from orchestrator.trials.outcomes import RULES

Outcome = Literal["holds", "the other way round", "alike", "not settled"]


@dataclass(frozen=True, slots=True)
class Beside:
    """A claim of the paper and one contrast of a sweep that tests it.

    Attributes:
      claim: the paper's claim.
      where: the cell, or the two cells of a gap.
      means: quantity of the difference, with its unit.
      difference: the paper's better arm minus the other, with the interval of the test that decides.
      outcome: the sweep's verdict on the claim.
      because: reason why it is not settled; empty if it is, or if the interval alone is the reason.
    """

    claim: Claim
    where: str
    means: str
    difference: Estimate | None
    outcome: Outcome
    because: str = ""


def beside(found: Findings) -> Iterator[Beside]:
    """Yields every claim in the sweep's file with every contrast that tests it.

    Contrasts are with the sweep's first arm, so a claim about two other arms has none.
    """
    for claim in found.plan.sweep.paper.claims if found.plan.sweep.paper else ():
        arms = {claim.better, claim.than}
        if claim.measure in CLAIMED:
            for gap in claimed(found.gap_contrasts, [claim]):
                yield Beside(
                    claim,
                    f"{gap.pair.cell} against {gap.pair.base_cell}",
                    f"gap at best of {gap.budget}, pp, {gap.base_arm} {gap.base_gap_pp:+.2f}, "
                    f"{gap.arm} {gap.gap_pp:+.2f}",
                    _turned(gap.difference_pp, gap.arm == claim.better),
                    _outcome(gap.better, claim),
                    gap.difference_pp.because,
                )
        else:
            for contrast in found.contrasts:
                if contrast.measure == claim.measure and {contrast.arm, contrast.base_arm} == arms:
                    yield Beside(
                        claim,
                        contrast.cell,
                        MEASURES[contrast.measure].symbol,
                        _turned(_deciding(contrast), contrast.arm == claim.better),
                        _outcome(contrast.better, claim, contrast.decision == "alike"),
                        contrast.because,
                    )


def _deciding(contrast: Contrast) -> Estimate | None:
    """Returns the difference that stands beside the verdict: the typical one, or the mean of alike arms."""
    return contrast.within if contrast.decision == "alike" else contrast.shift or contrast.difference


def _turned(estimate: Estimate | None, as_it_is: bool) -> Estimate | None:
    """Returns the estimate with its sign reversed, or unchanged if `as_it_is`."""
    if estimate is None or as_it_is:
        return estimate
    low, high = estimate.low, estimate.high
    return Estimate(
        -estimate.value,
        None if high is None else -high,
        None if low is None else -low,
        estimate.because,
    )


def _outcome(better: str | None, claim: Claim, alike: bool = False) -> Outcome:
    if alike:
        return "alike"
    if better is None:
        return "not settled"
    return "holds" if better == claim.better else "the other way round"


def document(folders: Sequence[Path], figures: Path, before: str = "") -> str:
    """Returns the whole document. Copies figures to the folder that its links lead to.

    Args:
      folders: of the sweeps.
      figures: the folder for figures.
      before: an earlier document, whose other sections stay.
    """
    _, *old = before.split("\n## ")
    sections = {text.partition("\n")[0]: f"## {text.rstrip()}" for text in old}
    sections |= {path.name: _section(path, figures) for path in folders}
    command = " ".join(["python -m benchmarks.results", *(f"runs/{name}" for name in sections)])
    return "\n\n".join([_HEAD.format(command=command), *sections.values()]) + "\n"


_HEAD = """\
# Results

What the sweeps of `search_spaces/` found, beside what Xiao et al. 2021
([2106.14881](https://arxiv.org/abs/2106.14881)) claim of ImageNet. Written by

```
{command}
```

from the journals of finished sweeps, together or, with `--extend`, one after the other. A claim *holds* where
the sweep settles its contrast in favour of the arm that the paper says is better. The arms are *alike* where
they differ by less than the margin, and a claim is *not settled* where so many runs cannot tell. Difference
and interval are those of the test that decides, at the level that the declared looks and the other contrasts
leave it. So an interval excludes 0 exactly where an arm is better ([statistics.md](statistics.md)). What
holds at this size need not hold at the paper's, nor the other way round."""


def _section(path: Path, figures: Path) -> str:
    folder = open_folder(path)
    found = gather(folder.plan, folder.records, declared=folder.declared)
    sweep = found.plan.sweep
    trials = {result.trial.id: result for result in found.results}
    ended = sum(result.state in RULES for result in trials.values())
    lines = [f"## {path.name}", "", f"*{sweep.question}*" if sweep.question else "", ""]
    if ended < len(trials):
        return "\n".join([*lines, f"Not finished: {ended} of {len(trials)} trials have ended."])
    rows = list(beside(found))
    if rows:
        lines += [
            "| the paper | where | by | better - other | interval | here |",
            "|---|---|---|---|---|---|",
            *(_row(row) for row in rows),
            "",
        ]
    reasons = [row.claim.why_not for row in rows if row.outcome != "holds" and row.claim.why_not]
    lines += [f"Why not, we think: {reason}\n" for reason in dict.fromkeys(reasons)]
    # Claims have their verdicts by cell. Two cells are too few to say what to expect in a third.
    pooled = pooled_sentence(headline_pooled(found)) if len(sweep.cell_names()) > 2 and not rows else ""
    lines += [f"{sentence}\n" for sentence in (*answer_of(found), pooled) if sentence]
    lines += [_cost(folder, found), ""]
    lines += _figures(path, sweep.name, figures, rows)
    return "\n".join(lines).rstrip()


def _row(row: Beside) -> str:
    difference, interval = "-", "none"
    if row.difference is not None:
        difference = f"{row.difference.value:+.2f}"
        if row.difference.low is not None and row.difference.high is not None:
            interval = f"{row.difference.low:+.2f} to {row.difference.high:+.2f}"
    here = f"**{row.outcome}**" + (f": {row.because}" if row.because and row.outcome == "not settled" else "")
    says = f"{row.claim.says} ({row.claim.source})"
    return f"| {says} | {row.where} | {row.means} | {difference} | {interval} | {here} |"


def _cost(folder: Folder, found: Findings) -> str:
    cost, machine = total_cost(found), folder.record.get("machine", {})
    where = ", ".join(machine.get("gpus") or []) or str(machine.get("processor", "an unrecorded machine"))
    num_trials = len({result.trial.id for result in found.results})
    return (
        f"{num_trials} trials, {cost['epochs']:,} epochs, {cost['multiply_adds']:.2g} multiply-adds; "
        f"{duration(cost['trial_seconds'])} of trials, added up, on {where}."
    )


def _figures(path: Path, name: str, figures: Path, rows: Sequence[Beside]) -> list[str]:
    """Copies the figures that show the claims: sizes of gaps, or settings near the best error of all."""
    measures = {row.claim.measure for row in rows} or {"area_common"}
    kinds = {f"gaps~{CLAIMED[measure]}" if measure in CLAIMED else "common~" for measure in measures}
    lines = []
    for source in sorted((path / "report" / "figures").glob("*.svg")):
        if any(source.stem.startswith(kind) for kind in kinds):
            figures.mkdir(parents=True, exist_ok=True)
            target = figures / f"{name}-{source.stem.replace('~', '-')}.svg"
            shutil.copyfile(source, target)
            lines.append(f"![{name}: {source.stem.replace('~', ' ')}]({figures.name}/{target.name})")
    return lines


def main() -> None:
    """Writes the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of finished sweeps")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--extend", action="store_true", help="keep the sections of other sweeps in OUT")
    arguments = parser.parse_args()
    before = arguments.out.read_text("utf-8") if arguments.extend else ""
    text = document(arguments.folders, arguments.out.with_suffix(""), before)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
