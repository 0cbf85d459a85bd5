"""The recurrent cache, and cutting a batch into segments."""

import pytest
import torch

from hfstack.models.recurrence import RecurrentCache, Slab, split_segments


@pytest.mark.parametrize("filler_fraction", [0.0, 0.25, 0.9])
def test_segments_hold_each_token_once_and_in_order(filler_fraction: float) -> None:
    generator = torch.Generator().manual_seed(0)
    valid = torch.rand(7, 40, generator=generator) < 0.8
    valid[3] = False
    starts = torch.rand(7, 40, generator=generator) < 0.15
    segments = split_segments(valid, starts, filler_fraction=filler_fraction)
    assert segments is not None

    homes = segments.token_index[segments.real]
    assert sorted(homes.tolist()) == valid.flatten().nonzero().squeeze(1).tolist()
    assert sum(steps * width for steps, width in segments.slabs) == len(segments.token_index)
    assert filler_fraction > 0 or bool(segments.real.all())

    # The documents, read column by column out of the slabs.
    begin, documents = 0, [[] for _ in range(segments.slabs[0].width)]
    for steps, width in segments.slabs:
        places = segments.token_index[begin : begin + steps * width].view(steps, width)
        real = segments.real[begin : begin + steps * width].view(steps, width)
        for column in range(width):
            documents[column] += places[real[:, column], column].tolist()
        begin += steps * width
    assert [len(document) for document in documents] == sorted(map(len, documents), reverse=True)

    for document, row, continues in zip(
        documents, segments.row.tolist(), segments.continues.tolist(), strict=True
    ):
        assert document == sorted(document)
        assert {home // 40 for home in document} == {row}
        inner = [home for home in document[1:] if starts.flatten()[home]]
        assert inner == []
        is_first = document[0] == min(home for home in homes.tolist() if home // 40 == row)
        assert continues == (is_first and not bool(starts.flatten()[document[0]]))
    assert sorted(segments.ended_row.tolist()) == [0, 1, 2, 4, 5, 6]


def test_slabs_by_hand() -> None:
    # documents of 5 and 2 tokens, then of 3 and 4: longest first 5, 4, 3, 2
    valid = torch.ones(2, 7, dtype=torch.bool)
    starts = torch.zeros(2, 7, dtype=torch.bool)
    starts[0, 5] = starts[1, 3] = True
    exact = split_segments(valid, starts, filler_fraction=0.0)
    assert exact is not None
    assert exact.slabs == (Slab(2, 4), Slab(1, 3), Slab(1, 2), Slab(1, 1))
    assert exact.token_index[:4].tolist() == [0, 10, 7, 5]
    assert exact.row.tolist() == [0, 1, 1, 0]
    assert exact.continues.tolist() == [True, False, True, False]
    coarse = split_segments(valid, starts, filler_fraction=0.25)
    assert coarse is not None
    assert coarse.slabs == (Slab(3, 4), Slab(1, 2), Slab(1, 1))
    assert int((~coarse.real).sum()) == 1
    assert split_segments(~valid, starts, filler_fraction=0.0) is None


def test_cache_follows_its_rows() -> None:
    cache = RecurrentCache()
    assert (len(cache), cache.batch_size, cache.get_seq_length()) == (0, -1, 0)
    assert not cache.is_initialized
    cache.reorder_cache(torch.tensor([0]))  # generate may reorder before the first forward

    # 2 layers, 3 rows
    state = (torch.arange(24.0).view(2, 3, 4), torch.arange(24.0, 48.0).view(2, 3, 4))
    cache.advance(state, 4)
    cache.advance(state, 1)
    assert (len(cache), cache.batch_size, cache.get_seq_length()) == (2, 3, 5)
    assert cache.is_initialized
    assert cache.get_mask_sizes(2, 0) == (7, 0)
    assert (cache.get_max_length(), cache.is_croppable, cache.is_compileable) == (-1, False, False)

    cache.reorder_cache(torch.tensor([2, 0, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 5]))
    assert cache.state is not None
    for part, old in zip(cache.state, state, strict=True):
        torch.testing.assert_close(part, old[:, [2, 0]])

    cache.crop(0)
    with pytest.raises(RuntimeError, match="cannot be rolled back"):
        cache.crop(-1)
    cache.reset()
    assert (cache.state, cache.get_seq_length()) == (None, 0)
