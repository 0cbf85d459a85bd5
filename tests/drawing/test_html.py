"""Text from a model or a dataset is never markup."""

import math

import pytest

from hfstack.drawing.html import Html, json_block, tag


def test_markup_escapes_what_is_not_markup() -> None:
    assert tag("p.a.b", {"title": '"<'}, "1 < 2", Html("<b>x</b>"), None, ["&", 3]) == (
        '<p class="a b" title="&quot;&lt;">1 &lt; 2<b>x</b>&amp;3</p>'
    )
    assert "</script>" not in json_block("d", "</script>").removesuffix("</script>")
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_block("d", math.nan)
