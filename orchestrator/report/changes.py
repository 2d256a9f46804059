"""Sentences on what was declared before the results, and what was changed after them."""

from orchestrator.trials.declared import Declared

#: Said of a folder whose first declaration was recorded after its first result.
NOT_RECORDED = (
    "This folder was begun by a version that did not record what was declared, so nothing proves that its "
    "primary contrast was chosen before the results."
)
#: Said where a change reaches the primary contrast.
NOT_EXEMPT = (
    "So the primary contrast was not declared beforehand as it is now. It is tested like any other, in the "
    "family of its measure."
)


def change_sentences(declared: Declared | None) -> list[str]:
    """Returns a sentence for each change, and what follows for the primary contrast.

    Empty if all is as declared.

    Args:
      declared: of the folder; None if there is none, or no result yet.
    """
    if declared is None:
        return []
    found = [f"{change.sentence[0].upper()}{change.sentence[1:]}." for change in declared.changes]
    if declared.now.primary is None:
        return found
    if not declared.in_time:
        found.insert(0, NOT_RECORDED)
    if not declared.primary_was_declared:
        found.append(NOT_EXEMPT)
    return found
