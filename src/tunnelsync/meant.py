"""What somebody meant who wrote a name that is not known; no I/O."""

from collections.abc import Mapping
from difflib import get_close_matches

ALIKE = 0.75
"""How much of two names is to be the same, in the measure of `difflib`."""


def meant(bare: str, known: Mapping[str, str]) -> list[str]:
    """Return the names with this bare form, else the one with the form most like it, or none.

    ``known`` has each name with its bare form: that without prefixes, which many share.
    """
    near = get_close_matches(bare, known.values(), 1, ALIKE)
    return [name for name, one in known.items() if one in near]
