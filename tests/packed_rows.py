"""Two documents, and rows in which documents are packed one behind the other."""

FIRST, SECOND = [20, 21, 22, 23, 24, 25], [30, 31, 32, 33]


def packed_row(*documents: list[int]) -> dict[str, list[int]]:
    joined = [token for document in documents for token in document]
    return {
        "input_ids": joined,
        "labels": list(joined),
        "seq_lengths": [len(document) for document in documents],
    }
