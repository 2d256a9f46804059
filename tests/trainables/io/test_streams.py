"""Output can be lost in many ways; none of them ends the work, and none leaves a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAD = "import sys\nfrom trainables.io.streams import *\nsteady_streams()\n"


def shell(line: str, program: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a program as $P in a line of shell. Its standard error is shown by the test if it fails."""
    environment |= {"PYTHONPATH": str(ROOT), "P": HEAD + program, "PY": sys.executable}
    command = ["bash", "-c", "set -o pipefail; " + line]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, timeout=60)


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "cp1252", "utf-8"])
def test_characters_that_the_encoding_lacks_are_replaced(encoding):
    program = "print('größe ▁▂ \\udcff', flush=True)\nprint('… 95 %', file=sys.stderr)"
    done = shell('"$PY" -c "$P"', program, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    # CPython's own codec is what a terminal of that encoding shows.
    assert done.stdout.decode(encoding).strip() == "größe ▁▂ \udcff".encode(encoding, "replace").decode(
        encoding
    )


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_the_null_device(tmp_path, redirection):
    file = tmp_path / "file"
    program = (
        f"with open({str(file)!r}, 'w') as file:\n"
        "    import os\n"
        "    print('x'); print('y', file=sys.stderr); sys.stdin.read(0)\n"
        "    os.system('echo from a child; echo another >&2')\n"
        "    file.write('content')\n"
        "    assert file.fileno() > 2\n"
        "\n"
    )
    assert shell(f'"$PY" -c "$P" {redirection}', program).returncode == 0
    assert file.read_text() == "content"


@pytest.mark.parametrize("line", ['"$PY" -c "$P" | head -1', '"$PY" -c "$P" > /dev/full'])
def test_work_outlives_its_display(tmp_path, line):
    program = (
        "for i in range(3000):\n"
        "    print('a line of the display', i, flush=True)\n"
        f"open({str(tmp_path / 'done')!r}, 'w').close()\n"
        "\n"
    )
    done = shell(line, program)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("line", ['"$PY" -c "$P" | head -1', '"$PY" -c "$P" | grep -m1 -o a'])
def test_a_command_that_looks_on_ends_with_its_reader(line):
    # Without an end of its own.
    program = "end_with_reader()\nwhile True: print('a', flush=True)"
    done = shell(line, program)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\n", b"")


def test_what_is_written_at_the_end_to_a_reader_that_has_gone_is_no_error():
    program = "print('a', flush=True)\nsys.stdin.read()\nprint('x')"
    # The pipe's reader ends after a line; standard input ends when it has.
    done = shell('{ "$PY" -c "$P" < <(cat <&3) | { head -1; exec 3<&-; }; } 3</dev/null', program)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\n", b"")
