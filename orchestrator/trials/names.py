"""Names of trials that the user can type."""

import difflib
import re

from orchestrator.trials.trial import Plan, Trial
from trainables.errors import UserError

#: Largest number of names in the message about a name that is unknown or ambiguous.
_MOST_NAMES = 8


class UnknownTrial(UserError):
    """A name that fits no trial or several. The message lists the nearest names."""


def name_of(trial: Trial) -> str:
    """Returns a trial's name: vit_c/adamw/3, or for an extra run vit_c/adamw/3/confirm/r1."""
    extra = "" if trial.is_tried else f"/{trial.role}"
    replicate = f"/r{trial.replicate}" if trial.replicate or extra else ""
    return f"{trial.arm}/{trial.cell_name}/{trial.point}{extra}{replicate}"


def find_trial(plan: Plan, text: str) -> Trial:
    """Finds the trial that the user means.

    Args:
      plan: the plan of the sweep.
      text: its id or the beginning of it; or its name, such as `vit_c/adamw/3` or `vit_c adamw p3`. The parts
        may be in any order, and the cell may be left out if that is unambiguous.

    Raises:
      UnknownTrial: no trial or several trials fit.
    """
    first = {trial.id: trial for trial in reversed(plan.trials)}
    if text in first:
        return first[text]
    words = _words(text)
    named = [trial for trial in plan.trials if words and words <= _words_of(trial)]
    # A point means its own run rather than the extra runs with other seeds.
    own = [trial for trial in named if trial.is_tried and trial.replicate == 0]
    for found in (named, own):
        if len(distinct := {trial.id: trial for trial in reversed(found)}) == 1:
            return next(iter(distinct.values()))
    begun = [trial for key, trial in first.items() if text and key.startswith(text)]
    if len(begun) == 1 and not named:
        return begun[0]
    if several := [*named, *begun]:
        names = ", ".join(_shown(trial) for trial in several[:_MOST_NAMES])
        more = f" and {len(several) - _MOST_NAMES} more" if len(several) > _MOST_NAMES else ""
        raise UnknownTrial(f"{text!r} fits {len(several)} trials: {names}{more}")
    by_name = {name_of(trial): trial for trial in plan.trials}
    near = difflib.get_close_matches(text, [*by_name, *first], n=3, cutoff=0.5) or list(by_name)[:3]
    shown = ", ".join(_shown(by_name.get(name) or first[name]) for name in near)
    raise UnknownTrial(f"no trial is called {text!r}; the nearest are {shown}")


def _shown(trial: Trial) -> str:
    return f"{name_of(trial)} ({trial.id[:8]})"


def _words(text: str) -> set[str]:
    return {re.sub(r"^p(?=\d+$)", "", word) for word in re.split(r"[\s/,]+", text.strip()) if word}


def _words_of(trial: Trial) -> set[str]:
    return _words(name_of(trial)) | {f"r{trial.replicate}"} | _words(trial.role.replace("_", " "))
