"""Places of scored positions, also behind the first thousand rows."""

from datasets import Dataset

from hfstack.tasks.distillation.cache import number_scored
from hfstack.tasks.sft.packing import pack_documents


def test_positions_are_numbered_where_the_next_token_is_scored() -> None:
    rows = Dataset.from_dict({"labels": [[-100, -100, 5, 6], [7, 8], [-100, 3]]})
    # the last token of a row predicts nothing, and the first is predicted by nothing
    assert number_scored(rows, "places", first=10)["places"][:] == [
        [0, 10, 11, 0],
        [12, 0],
        [13, 0],
    ]


def test_more_rows_than_a_chunk_are_packed_with_their_places() -> None:
    count = 2500
    rows = Dataset.from_dict(
        {"input_ids": [[n % 90, 1, 2] for n in range(count)], "labels": [[-100, 1, 2]] * count}
    )
    packed = pack_documents(number_scored(rows, "places"), max_length=30, strategy="bfd")
    places = [place for row in packed["places"] for place in row]
    assert sorted(place for place in places if place) == list(range(1, 2 * count))
