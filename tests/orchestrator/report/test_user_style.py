"""Figures look the same whatever the user has set for matplotlib."""

import matplotlib
from cycler import cycler

from orchestrator.report import figures, plotting
from orchestrator.trials.records import results_of
from tests.support.sweeps import ended, epoch_row, plan_of, records_of

HOSTILE = {
    "text.usetex": True,
    "figure.dpi": 50,
    "figure.constrained_layout.use": True,
    "savefig.format": "jpg",
    "font.size": 20,
    "axes.facecolor": "red",
    "axes.prop_cycle": cycler(linestyle=["--", ":"]),
    "axes.unicode_minus": False,
    "lines.marker": "*",
    "path.sketch": (1, 100, 2),
    "svg.fonttype": "path",
    "pdf.compression": 0,
}


def drawn() -> tuple[str, bytes]:
    plan = plan_of()
    records = records_of(plan, lambda trial: ended([epoch_row(error_pct=20.0 + 3 * trial.point)]))
    arms = {"p": [result for result in results_of(plan, records) if result.trial.arm == "p"]}
    svg = plotting.to_svg(figures.curves(arms))
    return svg, plotting.to_pdf(figures.curves(arms))


def test_no_setting_of_matplotlib_changes_a_figure():
    expected = drawn()
    with matplotlib.rc_context(HOSTILE):
        before = dict(matplotlib.rcParams.copy())
        assert drawn() == expected
        assert dict(matplotlib.rcParams.copy()) == before
