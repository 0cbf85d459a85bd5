"""Import the libraries of the extra `retrieval` where they are needed.

sentence-transformers takes a second to import, which no other recipe should pay.
"""

from typing import Any

from hfstack.packages import import_extra

_EXTRA = "retrieval"


def import_library(name: str) -> Any:
    """Return a module of the extra, such as `sentence_transformers` or one below it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    return import_extra(name, _EXTRA)
