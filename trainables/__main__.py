"""`python -m trainables config.yaml` trains one model without Ray and prints one line per epoch.

With --checkpoint, the same command continues a run that was killed. A row may then be printed twice.
"""

import sys

# `python -m` looks for modules in the current folder first, where a file of the user may have the name of one
# of the standard library.
if __name__ == "__main__" and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))

from trainables.errors import UserError
from trainables.io.streams import steady_streams
from trainables.io.surroundings import check_surroundings

# Before torch is imported, as some variables keep it from loading.
if __name__ == "__main__":
    steady_streams()
    try:
        check_surroundings()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None

import argparse
import contextlib
import dataclasses
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from trainables.base import DataError, Diverged, Invalid, Preempted
from trainables.config import TrainConfig, faults_of
from trainables.context import this_process
from trainables.gpu import gpu_fault, visible_device
from trainables.io.code import trusting_code
from trainables.io.faults import branches, fault_lines, placed
from trainables.io.yaml import YamlError, load_document
from trainables.lookup import Lookup, explained, with_absolute_paths
from trainables.training.checkpoint import LEAST_SECONDS, SHARE, Checkpointer, Store
from trainables.training.loop import train


def main(arguments: list[str] | None = None) -> int:
    """Trains the run of the command line. Returns the exit code.

    0: finished. 1: diverged. 2: the configuration, data or checkpoint cannot be used. 75 (EX_TEMPFAIL): ended
    by SIGTERM with its state written; the same command continues from there.
    """
    parser = argparse.ArgumentParser(prog="python -m trainables", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file with the fields of TrainConfig")
    parser.add_argument(
        "--threads", type=_threads, default=1, help="CPU threads; part of the result (default 1)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="where it computes (default: a GPU if one is seen)"
    )
    parser.add_argument("--save", type=Path, help="write the final checkpoint here")
    parser.add_argument(
        "--checkpoint",
        metavar="PLACE",
        help="folder or URI (s3://, gs://) that keeps the state; goes on from it",
    )
    parser.add_argument(
        "--checkpoint-share",
        type=_above_0,
        default=SHARE,
        help="part of the time for it (default %(default)s)",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=_seconds,
        default=LEAST_SECONDS,
        help="least seconds between two (default %(default)s)",
    )
    parser.add_argument("--start", type=Path, help="checkpoint, as --save wrote it, of the run in `start`")
    options = parser.parse_args(arguments)
    try:
        document = load_document(options.config)
        lookup = Lookup.beside(options.config)
        with trusting_code():
            config = TrainConfig.model_validate(
                with_absolute_paths(document.value, branches(TrainConfig), lookup)
            )
        config.data.info()
    except YamlError as error:
        print(error, file=sys.stderr)
        return 2
    except ValidationError as error:
        faults = [replace(f, place=placed(f, document.places)) for f in faults_of(error)]
        print(fault_lines(str(options.config), faults), file=sys.stderr)
        return 2
    except DataError as error:
        print(f"{options.config}: data: {explained(str(error), lookup.in_vain)}", file=sys.stderr)
        return 2
    if options.device == "cuda" and (fault := gpu_fault()):
        print(f"--device cuda: {fault}", file=sys.stderr)
        return 2
    if options.save and not os.access(options.save.absolute().parent, os.W_OK):
        # Told now, and not after the training.
        print(f"--save {options.save}: the folder is not there, or may not be written to", file=sys.stderr)
        return 2
    try:
        store = Store(options.checkpoint) if options.checkpoint else None
    except DataError as error:
        print(f"--checkpoint {error}", file=sys.stderr)
        return 2
    code = _train(config, options, store)
    if store is not None and code in (0, 1):
        store.clear()
    return code


def _threads(text: str) -> int:
    if not 0 < int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"must be from 1 to 4096, is {text}")
    return int(text)


def _above_0(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, is {text}")
    return float(text)


def _seconds(text: str) -> float:
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0, is {text}")
    return float(text)


def _train(config: TrainConfig, options: argparse.Namespace, store: Store | None) -> int:
    keeper = None
    try:
        with contextlib.ExitStack() as stack:
            if store is not None:
                is_stopping = stack.enter_context(_instead_of_sigterm())
                keeper = Checkpointer(
                    store, is_stopping, options.checkpoint_share, options.checkpoint_seconds
                )
                stack.enter_context(keeper)
            # The loop variable `state` is used after the loop.
            start = stack.enter_context(options.start.open("rb")) if options.start else None
            here = this_process(threads=options.threads, device=options.device or visible_device())
            for row, state in train(config, here, keeper=keeper, start=start):  # noqa: B007
                print(json.dumps(dataclasses.asdict(row)), flush=True)
    except Preempted as error:
        print(f"stopped {error}; the same command goes on", file=sys.stderr)
        return 75
    except Diverged as error:
        print(f"diverged: {error}", file=sys.stderr)
        return 1
    except (DataError, Invalid, OSError) as error:
        print(f"{options.config}: {error}", file=sys.stderr)
        return 2
    finally:
        for notice in keeper.notices if keeper is not None else ():
            print(notice, file=sys.stderr)
    print(json.dumps({"weights": state.weights_digest()}))
    if options.save:
        with options.save.open("wb") as file:
            state.save(file)
    return 0


@contextlib.contextmanager
def _instead_of_sigterm() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether SIGTERM has arrived. SIGTERM does not end the process inside."""
    stopping = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        yield stopping.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    raise SystemExit(main())
