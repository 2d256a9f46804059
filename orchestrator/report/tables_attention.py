"""The table of attention collapse, and its rows for the terminal."""

from collections.abc import Iterable, Iterator, Sequence

from orchestrator.analysis.collapse import MIN_ONSETS, SPREADS, ArmMaps, Collapse, TrialMaps, baselines
from orchestrator.analysis.findings import Findings
from orchestrator.report.document import Row, estimate_columns
from orchestrator.report.table import Table, Text
from orchestrator.report.text import share_text
from orchestrator.sweep.config import ONE_CELL

#: Names of the baselines for people.
LEVELS = {"uniform": "uniform", "flat": "independent, flat", "peaky": "independent, peaky"}
_TOKENS = {"all": "all", "patches": "patches"}
_MAPS = {"softmax": "", "transformed": "transformed"}


def collapse_table(found: Findings) -> Table:
    collapse, arms = found.collapse, found.arm_maps
    threshold = collapse.threshold if collapse else 0.0
    table = Table(
        "collapse",
        "Similarity of the attention maps of each block to those of the block before",
        ("Cell", "Arm", "Tokens", "#Trials", "#Similarity", f"#Share above {threshold:g}", "#Entropy / log T",
         "#Trials with an onset", "#Onset block"),
        section="Attention maps",
        intro="In deep networks the maps of successive blocks may become alike (collapse). Similarity is the "
        "mean cosine of the columns of two maps over images, heads, tokens and blocks; 1 is the same map. "
        "Uniform maps are alike without being a copy, so read it beside the entropy, which is 1 for them, "
        "and beside what independent maps have at as many tokens. An arm's trials are those whose weights "
        "were kept; no verdict is taken.",
    )  # fmt: skip
    if found.collapse_because:
        table.note(found.collapse_because)
    if collapse is None:
        return table
    for cell in dict.fromkeys(one.cell for one in arms):
        mine = [one for one in arms if one.cell == cell]
        for one in mine:
            table.add(cell, *_texts(one))
            table.data.append(_row(one))
        for tokens, num_tokens in dict.fromkeys((one.tokens, one.num_tokens) for one in mine):
            for name, level in baselines(num_tokens, threshold).items():
                numbers = (level.similarity, level.share_similar, level.entropy)
                table.add(
                    cell,
                    Text(LEVELS[name], f"{num_tokens} tokens"),
                    _TOKENS[tokens],
                    "–",
                    *map(share_text, numbers),
                    "–",
                    "–",
                    kind="soft",
                )
    table.note(_how(collapse.trials))
    table.note(
        "Flat and peaky maps are softmax of independent normal scores with standard deviations of "
        f"{SPREADS['flat']:g} and {SPREADS['peaky']:g}, drawn with a fixed seed. "
        "Onset: the first block from which on each is at least "
        f"{threshold:g} similar to the one before; its mean is over the trials that have one, with Student's "
        f"95 % interval over them from {MIN_ONSETS} on."
    )
    for one in arms:
        if one.num_averaged < one.num_trials:
            table.note(
                f"{one.arm}: means are over {one.num_averaged} of {one.num_trials} trials, which have "
                f"{one.num_blocks} blocks and {one.num_heads} heads."
            )
    return table


def _how(trials: Iterable[TrialMaps]) -> str:
    counts = sorted({trial.num_images for trial in trials})
    images = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"{images} images of the selection split, in proportion to its classes, in evaluation mode and with "
        "the weights that the error was measured with."
    )


def _texts(one: ArmMaps) -> Iterator[str | Text]:
    yield Text(one.arm, ", ".join(part for part in (f"{one.num_blocks} blocks", _MAPS[one.maps]) if part))
    yield _TOKENS[one.tokens]
    yield str(one.num_trials)
    most = max(one.similarity, default=None)
    yield Text(
        share_text(one.mean_similarity),
        "" if most is None else f"{share_text(most)} at block {one.similarity.index(most) + 2}",
    )
    yield share_text(one.mean_share_similar)
    yield share_text(one.mean_entropy)
    yield f"{len(one.onsets)} of {one.num_trials}"
    yield onset_text(one)


def onset_text(one: ArmMaps) -> Text:
    """Returns the mean onset with its interval, or the onsets if they are too few for a mean."""
    if one.onset is None:
        return Text(", ".join(map(str, one.onsets)) or "none")
    if one.onset.low is None or one.onset.high is None:
        return Text(f"{one.onset.value:.1f}", one.onset.because)
    return Text(f"{one.onset.value:.1f}", f"{one.onset.low:.1f} to {one.onset.high:.1f}")


def _row(one: ArmMaps) -> Row:
    row: Row = {
        "cell": one.cell,
        "arm": one.arm,
        "maps": one.maps,
        "tokens": one.tokens,
        "num_tokens": one.num_tokens,
        "num_blocks": one.num_blocks,
        "num_heads": one.num_heads,
        "num_trials": one.num_trials,
        "num_averaged": one.num_averaged,
        "similarity": one.mean_similarity,
        "share_similar": one.mean_share_similar,
        "entropy": one.mean_entropy,
        "num_onsets": len(one.onsets),
        **estimate_columns("onset", one.onset),
    }
    for name, level in one.baselines.items():
        row |= {f"{name}_similarity": level.similarity, f"{name}_share_similar": level.share_similar}
        row |= {f"{name}_entropy": level.entropy}
    return row


def terminal_rows(arms: Sequence[ArmMaps], threshold: float) -> list[Row]:
    """Returns small rows per cell, arm and kind of map, and below them a row per baseline."""
    has_cells = any(one.cell != ONE_CELL for one in arms)

    def row(
        cell: str, arm: str, tokens: str, trials: str, numbers: Sequence[float | None], block: str
    ) -> Row:
        similarity, share, entropy = numbers
        return {
            **({"cell": cell} if has_cells else {}),
            "arm": arm,
            "tokens": tokens,
            "trials": trials,
            "similarity": share_text(similarity),
            f"above {threshold:g}": share_text(share),
            "entropy": share_text(entropy),
            "onset block": block,
        }

    rows = []
    for one in arms:
        onset = onset_text(one)
        rows.append(
            row(
                one.cell,
                f"{one.arm} {_MAPS[one.maps]}".strip(),
                _TOKENS[one.tokens],
                str(one.num_trials),
                (one.mean_similarity, one.mean_share_similar, one.mean_entropy),
                f"{onset.main} ({onset.small})" if onset.small else onset.main,
            )
        )
    for num_tokens in dict.fromkeys(one.num_tokens for one in arms):
        for name, level in baselines(num_tokens, threshold).items():
            numbers = (level.similarity, level.share_similar, level.entropy)
            rows.append(row("", name, str(num_tokens), "", numbers, ""))
    return rows


def collapse_rows(collapse: Collapse) -> list[Row]:
    """Returns a row per trial and block for collapse.csv.

    Names of columns begin with `patches_` without the class token, and with `transformed_` after a map
    transform. Baselines are of as many tokens.
    """
    rows = []
    for trial in collapse.trials:
        for block in range(trial.num_blocks):
            row: Row = {
                key: getattr(trial, key) for key in ("trial", "cell", "arm", "point", "replicate", "role")
            }
            row |= {"block": block + 1, "num_images": trial.num_images}
            for found in trial.found:
                start = "transformed_" if found.maps == "transformed" else ""
                start += "patches_" if found.tokens == "patches" else ""
                row |= {
                    f"{start}num_tokens": found.num_tokens,
                    f"{start}similarity": found.similarity[block - 1] if block else None,
                    f"{start}share_similar": found.share_similar[block - 1] if block else None,
                }
                if found.entropy is not None:
                    row[f"{start}entropy"] = found.entropy[block]
                for name, level in baselines(found.num_tokens, collapse.threshold).items():
                    row[f"{start}{name}_similarity"] = level.similarity if block else None
            rows.append(row)
    return rows
