"""The published prompt sets, recognised by what is in them: none comes with the package, each is read from a file.

A file is such a set if it has as many prompts of each kind as the set. Where the prompts' own hash is known it must
agree, too; it does not depend on line ends, quotes and further columns.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from imagen.prompt_files import Prompt


@dataclass(frozen=True)
class Published:
    """A set: how many prompts of each kind it has, and the SHA-256 of all of them, a line each, in their order."""

    name: str
    counts: dict[str, int]
    digest: str | None = None


SETS = (
    Published(  # Saharia et al. 2022, appendix C: the counts of all copies that name the categories
        "DrawBench",
        {
            "Colors": 25,
            "Conflicting": 10,
            "Counting": 19,
            "DALL-E": 20,
            "Descriptions": 20,
            "Gary Marcus et al.": 10,
            "Misspellings": 10,
            "Positional": 20,
            "Rare Words": 7,
            "Reddit": 38,
            "Text": 21,
        },
    ),
    Published(  # Yu et al. 2022; google-research/parti, PartiPrompts.tsv
        "PartiPrompts",
        {
            "Abstract": 51,
            "Animals": 314,
            "Artifacts": 287,
            "Arts": 66,
            "Food & Beverage": 74,
            "Illustrations": 124,
            "Indoor Scenes": 40,
            "Outdoor Scenes": 131,
            "People": 177,
            "Produce & Plants": 50,
            "Vehicles": 104,
            "World Knowledge": 214,
        },
        "f6f70c68ccd707403dbcdb3981bf0aa628a05665610075ef75c0b279b91dcebe",
    ),
    Published(  # Ghosh et al. 2023; djghosh13/geneval, prompts/evaluation_metadata.jsonl
        "GenEval",
        {
            "color_attr": 100,
            "colors": 94,
            "counting": 80,
            "position": 100,
            "single_object": 80,
            "two_object": 99,
        },
        "4de60dfc3c29f9d3db69ec45cf03a964627c2d82f2c224c3f75645e137f7126b",
    ),
)


def recognise(prompts: Sequence[Prompt]) -> tuple[Published | None, str]:
    """The published set that these prompts are, or, in words, how they differ from the one whose kinds they have.

    (None, '') for prompts of no such set, or with fewer than half of its kinds, which may well be another's.
    """
    counts = Counter(prompt.kind for prompt in prompts)
    for published in SETS:
        if 2 * len(counts) < len(published.counts) or not set(counts) <= set(published.counts):
            continue
        if differing := [f"{kind} {counts[kind]} of {n}" for kind, n in published.counts.items() if counts[kind] != n]:
            few = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
            return None, f"{len(prompts)} of {sum(published.counts.values())} prompts of {published.name} ({few})"
        if published.digest not in (None, digest(prompts)):
            return None, f"as many prompts as {published.name}, but not the same"
        return published, ""
    return None, ""


def digest(prompts: Sequence[Prompt]) -> str:
    """The SHA-256 of the prompts' texts, a line each."""
    return hashlib.sha256("\n".join(prompt.text for prompt in prompts).encode()).hexdigest()
