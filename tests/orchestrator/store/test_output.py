"""The output of a run in its folder: all of it is read, whenever the reader looks."""

import io
import threading

import pytest

from orchestrator.store import output
from orchestrator.store.output import OutputLog, OutputTail, output_path


def test_what_is_said_before_the_folder_is_known_stands_first(tmp_path):
    log = OutputLog()
    log.write("preflight: ")
    log.write("2 shapes\n")
    log.begin(tmp_path)
    log.write("trial 1\n")
    assert output_path(tmp_path).read_text() == "preflight: 2 shapes\ntrial 1\n"


def test_the_output_of_the_run_before_is_kept_once(tmp_path):
    for number in range(3):
        log = OutputLog()
        log.begin(tmp_path)
        log.write(f"run {number}\n")
        log.close()
    assert output_path(tmp_path).read_text() == "run 2\n"
    assert (tmp_path / "output.1.log").read_text() == "run 1\n"


def test_a_folder_that_is_gone_loses_text_and_ends_nothing(tmp_path):
    log = OutputLog()
    log.begin(tmp_path / "gone")
    assert log.write("text") == 4
    log.close()


def test_a_tail_misses_nothing_of_a_log_that_goes_on_in_new_files(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "MAX_BYTES", 50_000)
    lines = [f"line {number}\n" for number in range(20_000)]
    log, seen = OutputLog(), io.StringIO()
    log.begin(tmp_path)
    tail = OutputTail(tmp_path)
    # In step with the writer: one file of its past is all that is kept.
    for line in lines:
        log.write(line)
        if len(line) % 3:
            tail.copy(seen)
    tail.copy(seen)
    assert seen.getvalue() == "".join(lines)


def test_a_tail_beside_a_writer_sees_every_line_once(tmp_path):
    log, seen = OutputLog(), io.StringIO()
    log.begin(tmp_path)
    writer = threading.Thread(target=lambda: [log.write(f"{number}\n") for number in range(5_000)])
    tail = OutputTail(tmp_path)
    writer.start()
    while writer.is_alive():
        tail.copy(seen)
    tail.copy(seen)
    assert seen.getvalue() == "".join(f"{number}\n" for number in range(5_000))


@pytest.mark.parametrize("text", ["ä", "→ 95 %"])
def test_other_letters_come_back(tmp_path, text):
    log, seen = OutputLog(), io.StringIO()
    log.begin(tmp_path)
    log.write(text)
    OutputTail(tmp_path).copy(seen)
    assert seen.getvalue() == text
