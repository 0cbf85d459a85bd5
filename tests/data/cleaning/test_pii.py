"""Personal data is found by its shape and check digit, inside Chinese too; other numbers stay."""

import pytest

from hfstack.data.cleaning.pii import PII_KINDS, mask_pii


@pytest.mark.parametrize(
    ("text", "expected", "counts"),
    [
        ("mail bob.smith+x@example.co.uk, now", "mail [EMAIL], now", {"email": 1}),
        ("邮箱zhang@example.com。", "邮箱[EMAIL]。", {"email": 1}),
        ("from 8.8.8.8 and 2001:4860:4860::8888", "from [IP] and [IP]", {"ip": 2}),
        ("(212) 555-0123, 1-800-555-0199.", "[PHONE], [PHONE].", {"phone": 2}),
        ("+44 20 7946 0958 or (020) 7946 0958", "[PHONE] or [PHONE]", {"phone": 2}),
        ("电话13800138000，或010-62345678。", "电话[PHONE]，或[PHONE]。", {"phone": 2}),
        ("+86 138 0013 8000", "[PHONE]", {"phone": 1}),
        ("身份证11010519491231002X号", "身份证[CN_ID]号", {"cn_id": 1}),
        ("SSN 078-05-1120", "SSN [US_SSN]", {"us_ssn": 1}),
        ("NI AB 12 34 56 C", "NI [UK_NINO]", {"uk_nino": 1}),
        ("card 4111 1111 1111 1111", "card [CARD]", {"card": 1}),
    ],
)
def test_masks(text: str, expected: str, counts: dict[str, int]) -> None:
    assert mask_pii(text, PII_KINDS) == (expected, counts)


@pytest.mark.parametrize(
    "text",
    [
        "192.168.1.1, 127.0.0.1, v1.2.3.4.5, 999.1.1.1, at 12:30:45, dead::beef",
        "on 2024-01-15, ISBN 978-0-306-40615-7, pi is 3.14159265358979",
        "pages 100-200, 1999-2000, 10000000000, 12345678901234",
        "110105194912310021 has a wrong check character, 4111 1111 1111 1112 too",
        "000-12-3456 is no SSN; M @-@ 82; a@b",
        "+1111111111111111111111111x",
    ],
)
def test_leaves_other_numbers(text: str) -> None:
    assert mask_pii(text, PII_KINDS) == (text, {})


def test_masks_what_is_asked_for() -> None:
    text = "a@b.org 8.8.8.8 078-05-1120"
    assert mask_pii(text, ["email"]) == ("[EMAIL] 8.8.8.8 078-05-1120", {"email": 1})
    assert mask_pii(text, []) == (text, {})
    assert mask_pii(text)[0] == "[EMAIL] [IP] 078-05-1120"  # national ids are an option


def test_an_identity_number_is_not_masked_as_a_phone() -> None:
    assert mask_pii("11010519491231002X", PII_KINDS)[1] == {"cn_id": 1}
