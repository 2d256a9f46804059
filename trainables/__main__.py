"""`python -m trainables config.yaml`: trains one model, without Ray; prints one line per epoch."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from pydantic import ValidationError

from trainables.base import Diverged, Invalid
from trainables.config import TrainConfig, faults_of
from trainables.context import this_process
from trainables.data import DataError
from trainables.loop import train
from trainables.yaml import YamlError, load_yaml


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 finished, 1 diverged, 2 a configuration or data that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m trainables", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file with the fields of TrainConfig")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; part of the result (default 1)")
    parser.add_argument("--save", type=Path, help="write the final checkpoint here")
    options = parser.parse_args(arguments)
    try:
        config = TrainConfig.model_validate(load_yaml(options.config))
        config.data.info()
    except YamlError as error:
        print(error, file=sys.stderr)
        return 2
    except ValidationError as error:
        faults = faults_of(error)
        lines = [f"{options.config}: {len(faults)} fault(s)", *(f"  {fault}" for fault in faults)]
        print("\n".join(lines), file=sys.stderr)
        return 2
    except DataError as error:
        print(f"{options.config}: data: {error}", file=sys.stderr)
        return 2
    try:
        # The state is wanted once the last row is out.
        for row, state in train(config, this_process(threads=options.threads)):  # noqa: B007
            print(json.dumps(dataclasses.asdict(row)), flush=True)
    except Diverged as error:
        print(f"diverged: {error}", file=sys.stderr)
        return 1
    except (DataError, Invalid) as error:
        print(f"{options.config}: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"weights": state.weights_digest()}))
    if options.save:
        with options.save.open("wb") as file:
            state.save(file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
