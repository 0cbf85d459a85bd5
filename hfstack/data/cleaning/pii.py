"""Mask personal data in text by its shape.

E-mail and IP addresses, phone numbers, and national identity numbers.

Shapes that carry a check digit are checked, which keeps product codes and page numbers in the text.
Names and postal addresses have no shape and are not found. No pattern relies on word boundaries, so
a number inside Chinese is found.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

_NOT_IN_NUMBER = r"(?<![0-9A-Za-z_+])(?<![0-9][.\-])"
_NOT_BEFORE_NUMBER = r"(?![0-9A-Za-z_]|[.\-][0-9])"
_DIGIT_OR_AT = re.compile("[0-9@]")  # in all that is masked


def _always(_: str) -> bool:
    return True


def _is_public_address(text: str) -> bool:
    """Return whether an IP address is public.

    Loopback, private and reserved ones say nothing about a person.
    """
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_phone(text: str) -> bool:
    """Return whether a number has 8 to 15 digits.

    ITU-T E.164 allows at most 15; fewer than 8 with a country code are no subscriber's number.
    """
    return 8 <= sum(character.isdigit() for character in text) <= 15


def _is_chinese_id(text: str) -> bool:
    """Return whether the check character is right.

    GB 11643-1999: a birth date inside and a check character by ISO 7064 MOD 11-2.
    """
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(weight * int(digit) for weight, digit in zip(weights, text[:17], strict=True))
    return "10X98765432"[total % 11] == text[17].upper()


def _passes_luhn(text: str) -> bool:
    """Return whether the digits pass the Luhn check (ISO/IEC 7812-1).

    Every second digit from the right doubled, the digit sum divisible by ten.
    """
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    doubled = (digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[1::2])
    return 13 <= len(digits) <= 19 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


class _Rule(NamedTuple):
    kind: str
    needed: re.Pattern[str]
    """Without it there is nothing to find. It starts with a character class, which `re` skips to 10
    times faster.
    """
    pattern: re.Pattern[str]
    check: Callable[[str], bool] = _always


_DATE = r"(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])"
# In the order of masking: an identity number is searched before a phone number, which it may
# contain.
_RULES = (
    _Rule(
        "email",
        re.compile("@"),
        re.compile(
            r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9._%+\-]{1,64}@"
            r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,62})\.){1,8}[A-Za-z]{2,24}"
        ),
    ),
    _Rule(
        "ip",
        re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"),
        re.compile(r"(?<![0-9A-Za-z_.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z_]|\.[0-9])"),
        _is_public_address,
    ),
    _Rule(
        "ip",
        re.compile("[23][0-9A-Fa-f]{3}:"),  # of IPv6, 2000::/3 is in use
        re.compile(
            r"(?<![0-9A-Za-z_:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z_:])"
        ),
        _is_public_address,
    ),
    # identity numbers
    _Rule(
        "cn_id",
        re.compile("[0-9]{17}"),
        re.compile(rf"(?<![0-9A-Za-z])[1-9][0-9]{{5}}{_DATE}[0-9]{{3}}[0-9Xx](?![0-9A-Za-z])"),
        _is_chinese_id,
    ),
    _Rule(
        "us_ssn",
        re.compile("[0-9]{3}-[0-9]{2}-"),
        re.compile(
            rf"{_NOT_IN_NUMBER}(?!000|666|9)[0-9]{{3}}-(?!00)[0-9]{{2}}-(?!0000)[0-9]{{4}}"
            rf"{_NOT_BEFORE_NUMBER}"
        ),
    ),
    _Rule(
        "uk_nino",
        re.compile("[A-Z]{2} ?[0-9]{2}"),
        re.compile(
            r"(?<![0-9A-Za-z])(?!BG|GB|KN|NK|NT|TN|ZZ)"
            r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?(?:[0-9]{2} ?){3}[A-D]"
            r"(?![0-9A-Za-z])"
        ),
    ),
    # cards and telephones
    _Rule(
        "card",
        re.compile(r"[3-6](?:[ \-]?[0-9]){12}"),
        re.compile(rf"{_NOT_IN_NUMBER}[3-6](?:[ \-]?[0-9]){{12,18}}{_NOT_BEFORE_NUMBER}"),
        _passes_luhn,
    ),
    _Rule(
        "phone",
        re.compile(r"[0-9](?:[().\- ]{0,3}[0-9]){7}"),
        re.compile(
            # E.164: +44 20 7946 0958
            rf"(?<![0-9A-Za-z_.])\+[1-9][0-9]{{0,2}}"
            rf"(?:[ .\-]?\(?[0-9]{{1,4}}+\)?){{2,6}}+{_NOT_BEFORE_NUMBER}"
            # North America: (212) 555-0123, 1-800-555-0199
            rf"|{_NOT_IN_NUMBER}(?:1[ .\-])?\(?[2-9][0-9]{{2}}\)?"
            rf"[ .\-][0-9]{{3}}[ .\-][0-9]{{4}}{_NOT_BEFORE_NUMBER}"
            # mainland China, mobile: 13800138000, 138-0013-8000
            rf"|{_NOT_IN_NUMBER}1[3-9][0-9]"
            rf"(?:[0-9]{{8}}|([ \-])[0-9]{{4}}\1[0-9]{{4}}){_NOT_BEFORE_NUMBER}"
            # area code with a trunk 0: 010-62345678, 020 7946 0958
            rf"|{_NOT_IN_NUMBER}\(?0[1-9][0-9]{{1,3}}\)?"
            rf"[ \-][0-9]{{3,4}}[ \-]?[0-9]{{3,4}}{_NOT_BEFORE_NUMBER}"
        ),
        _is_phone,
    ),
)
PII_KINDS = tuple(dict.fromkeys(rule.kind for rule in _RULES))
PLACEHOLDERS = {kind: f"[{kind.upper()}]" for kind in PII_KINDS}


def mask_pii(
    text: str, kinds: Iterable[str] = ("email", "ip", "phone")
) -> tuple[str, dict[str, int]]:
    """Replace personal data by placeholders such as `[EMAIL]`.

    Args:
        text: any string.
        kinds: members of `PII_KINDS`; `cn_id`, `us_ssn` and `uk_nino` are identity numbers,
            `card` payment cards.

    Returns:
        the masked text, and how many places were masked for each kind that was found.
    """
    found: dict[str, int] = {}
    if not _DIGIT_OR_AT.search(text):
        return text, found
    wanted = set(kinds)

    for kind, needed, pattern, check in _RULES:
        if kind not in wanted or not needed.search(text):
            continue
        places = 0

        def replace(
            match: re.Match[str], kind: str = kind, check: Callable[[str], bool] = check
        ) -> str:
            nonlocal places
            if not check(match[0]):
                return match[0]
            places += 1
            return PLACEHOLDERS[kind]

        text = pattern.sub(replace, text)
        if places:
            found[kind] = found.get(kind, 0) + places

    return text, found
