"""Figures look the same whatever the user has set for matplotlib."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from cycler import cycler

from orchestrator.report import figures, plotting
from orchestrator.trials.records import results_of
from tests.support.sweeps import ended, epoch_row, plan_of, records_of

ROOT = Path(__file__).parents[3]

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


#: What a user may have: variables, the content of ./matplotlibrc, and what they run before.
SURROUNDINGS = {
    "no backend and no text": ({"MPLBACKEND": "garbage"}, b"font.size: \xff\xfe\n", ""),
    "matplotlib has failed": (
        {"MPLBACKEND": "garbage", "MATPLOTLIBRC": "/proc/self/mem"},
        b"",
        "import contextlib\nwith contextlib.suppress(Exception): import matplotlib\n",
    ),
    "matplotlib is there": (
        {},
        b"font.size: 30\ntext.usetex: True\nbackend: none\nno colon",
        "import matplotlib\nmatplotlib.rcParams['axes.facecolor'] = 'red'\n",
    ),
}
_PROGRAM = """
import hashlib, os
import orchestrator.report.page
from tests.orchestrator.report.test_user_style import drawn
svg, pdf = drawn()
print(hashlib.sha256(svg.encode() + pdf).hexdigest(), os.environ.get("MPLBACKEND"), os.getcwd())
"""


@pytest.mark.parametrize("case", SURROUNDINGS)
def test_the_library_draws_alike_whatever_matplotlib_finds(case, tmp_path):
    variables, content, before = SURROUNDINGS[case]
    if content:
        (tmp_path / "matplotlibrc").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", before + _PROGRAM],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    svg, pdf = drawn()
    digest = hashlib.sha256(svg.encode() + pdf).hexdigest()
    # What the user has set stays for what else the program does.
    assert done.stdout.split() == [digest, variables.get("MPLBACKEND", "None"), str(tmp_path)]
