"""Verbs for clusters: check."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import cluster_app


@cluster_app.callback()
def _every_verb() -> None:
    # With one verb only, Typer would drop its name.
    pass


@cluster_app.command("check", epilog="Example: vitc-sweep cluster check cluster/gpu.yaml")
def cluster_check(
    file: Annotated[Path, typer.Argument(help="A file for `ray up`, such as cluster/gpu.yaml.")],
) -> None:
    """Finds what is wrong in a file for `ray up`, before that makes anything.

    Run it in the project's folder, where `ray up` will run. No provider is asked.
    """
    from orchestrator.backends.cluster_file import check

    provider = check(file, Path.home(), Path.cwd())
    if provider == "local":
        print(f"{file}: no fault found. The machines were not asked.")
    else:
        print(
            f"{file}: no fault found. {provider} was not asked: image, quota and rights show when it starts."
        )
