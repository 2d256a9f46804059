"""What the cluster test is made of, as far as it needs neither root nor Ray."""

import sys

import pytest

from tests.cluster import __main__ as command
from tests.cluster import machines
from tests.cluster.readme import README, Commands, commands, section
from tests.cluster.steps import ADDRESSES, _changed
from tests.cluster.walk import ROOT, StepFailed

TEXT = """\
## First
```sh
first                  # not of the section
```
## Second
Words.
```sh
one --option "a # b"   # what it does
two \\
    --more
```
```text
no command
```
```sh
for x in 192.0.2.10; do
    three

done

four ubuntu@192.0.2.10
```
"""


def test_commands_are_taken_as_they_are_written_and_without_their_comments():
    assert commands(section(TEXT, "Second")) == [
        'one --option "a # b"',
        "two \\\n    --more",
        "for x in 192.0.2.10; do\n    three\n\ndone",
        "four ubuntu@192.0.2.10",
    ]


def test_commands_are_taken_in_order_with_the_reader_s_own_names():
    found = Commands(section(TEXT, "Second"), {"ubuntu@": "me@", "192.0.2.10": "h"})
    assert found.take("one").startswith("one")
    with pytest.raises(ValueError, match='does not go on with "three"'):
        found.take("three")
    assert found.left()[-1] == "four me@h"


def test_what_the_readme_does_not_say_any_more_is_an_error():
    with pytest.raises(ValueError, match='no section "Third"'):
        section(TEXT, "Third")
    with pytest.raises(ValueError, match=r'does not name "10\.0\.0\.1"'):
        Commands(TEXT, {"10.0.0.1": "h"})


def test_the_section_of_the_readme_has_the_addresses_of_local_yaml_and_its_key():
    text = section(README.read_text())
    local = (ROOT / "cluster" / "local.yaml").read_text()
    assert all(address in local for address in ADDRESSES)
    assert " ".join(ADDRESSES) in text
    assert "ssh_private_key: ~/.ssh/vitc-sweep " in local
    assert "-f ~/.ssh/vitc-sweep" in text
    assert len(commands(text)) >= 12


def test_lines_marked_change_are_filled_in_and_others_are_not():
    text = "provider:\n  head_ip: 1.1.1.1   # CHANGE; this\n  other: 1.1.1.1\n"
    assert _changed(text, "head_ip", "2.2.2.2") == text.replace("head_ip: 1.1.1.1", "head_ip: 2.2.2.2")
    with pytest.raises(StepFailed):
        _changed(text, "other", "2.2.2.2")


def test_every_step_is_there():
    assert all(
        callable(getattr(kind, name))
        for kind, names in (*command.STEPS, *command.SLURM_STEPS)
        for name in names
    )


def test_without_root_it_says_so_and_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tests.cluster"])
    monkeypatch.setattr(machines.sys, "platform", "linux")
    monkeypatch.setattr(machines.os, "geteuid", lambda: 1000)
    assert command.main() == 0
    assert capsys.readouterr().out == "cluster test SKIPPED: machines need root, to make namespaces\n"


def test_without_a_program_it_names_it(monkeypatch):
    monkeypatch.setattr(machines.sys, "platform", "linux")
    monkeypatch.setattr(machines.os, "geteuid", lambda: 0)
    monkeypatch.setattr(machines, "_program", lambda name: None if name in ("sshd", "rsync") else name)
    assert machines.why_not() == "not installed: sshd, rsync"


@pytest.mark.skipif(bool(machines.why_not()), reason=machines.why_not())
def test_machines_share_a_network_and_nothing_else():
    """Three machines: start, log in, see only one's own, lose one, and start it again."""
    with machines.machines(ADDRESSES[:2]) as lab:
        head, other = lab.others
        options = f"-p {machines.SSH_PORT} -o StrictHostKeyChecking=accept-new"
        for machine in lab.others:
            said = lab.desk.run(
                f"ssh {options} root@{machine.address} 'hostname; nproc; touch /tmp/mine ~/mine'"
            )
            assert said.status == 0, said.output
            assert f"{machine.name}\n1\n" in said.output
        assert {"~/mine", "/tmp/mine"} <= head.files() & other.files()
        assert not lab.desk.files() & {"~/mine", "/tmp/mine"}
        # Nothing but each other can be reached.
        assert "default" not in head.run("ip route").output
        # Processes of one are not seen by another.
        window = head.start("exec sleep 1000")
        while "sleep 1000" not in head.processes():
            pass
        assert "sleep" not in other.run("ps -e").output
        assert "sleep" in head.run("ps -e").output
        head.kill()
        assert window.finish(10).status != 0
        lab.boot(head)
        assert head.processes() == []
        assert {"~/mine", "/tmp/mine"} & head.files() == {"~/mine"}
