"""Import the libraries of the extra `retrieval` where they are needed.

sentence-transformers takes a second to import, which no other recipe should pay.
"""

import importlib
from typing import Any

from hfstack.errors import MissingExtraError

_EXTRA = "retrieval"


def import_library(name: str) -> Any:
    """Return a module of the extra, such as `sentence_transformers` or one below it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name != package:
            raise
        raise MissingExtraError(package, _EXTRA) from None
