"""Find secrets in texts, by their shape or by the name before them.

Standard library only, and no file is opened: an error is redacted while it is handled, when there
may be no file left to open. Redaction, logs, errors, run records, cards and the scan before a push
all ask here. Tokens that show by themselves what they are stand in secret_shapes.py; this file
knows where a secret stands: behind its name, in a header, a URL or a command.

A rule begins where one of its words stands, which a plain search finds in a hundred megabytes
within seconds; its pattern is tried there alone.
"""

import base64
import binascii
import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hfstack.secret_shapes import SHAPES

_REPLACEMENT = "<redacted>"
SHORTEST_VALUE = 8  # characters of a known value; shorter ones turn up by chance


class Found(NamedTuple):
    """A secret in a text: what it is, and the bytes that nobody should see."""

    what: str
    start: int
    end: int


# Words that name a secret, with what stands before them in a name: `WANDB_API_KEY`, `hub_token`.
_WORDS = tuple(b"password passwd passphrase pwd secret token credential key signature _pat".split())
_SECRET_KEY = re.compile(
    rb"(?i)(?:api|access|secret|private|account|auth|signing|encryption|client)[_-]?\Z"
)
# as it is, behind backslashes, and inside of an argument that a shell quotes
_QUOTE = rb"(?:'\"'\"'|\\*[\"'])"
_VALUE = (
    rb"(?:(?P<quote>" + _QUOTE + rb")(?P<quoted>[^\"'\r\n]{1,4096}?)(?P=quote)"
    rb"|(?P<bare>[^\s\"'\\,;&<>(){}\[\]|`]{1,4096}))"
)
_ASSIGNED = re.compile(
    # `["API_KEY"] = ...` and `<password>...</password>` assign as well
    rb"(?P<plural>[sS])?(?P<closed>" + _QUOTE + rb"\]?)?"
    rb"(?P<sign>\s{0,3}(?:=>|:=|=|:)\s{0,3}|>(?=[^<>\s]{1,4096}</))" + _VALUE
)
# A space alone assigns on a command line, and separates words in prose.
_FLAG = re.compile(
    rb"--(?P<before>[A-Za-z0-9_-]*?)(?P<word>(?i:password|passwd|passphrase|pwd|secret|token"
    rb"|credential|key))(?:\s+|=)" + _VALUE
)
_NAME_BEFORE = re.compile(rb"[A-Za-z0-9_.-]*\Z")
# Tokens of a tokenizer, and what counts or switches: none of them is a secret.
_NO_SECRET = re.compile(
    rb"(?i)(?:eos|bos|pad|unk|mask|sep|cls|end|start|begin|stop|special|image|audio|video|decoder"
    rb"|prompt|first|last|next|new|max|min|num|per|input|output|target|added|extra|additional|byte"
    rb"|by|word|sub|public|primary|foreign|sort|cache|hash|dict|lookup|eot|bot"
    rb"|unknown|padding|text|answer|question|assistant|user|system|fim|is|use|has)[_.\s-]*\Z"
)
_CHOSEN = {b"password", b"passwd", b"passphrase", b"pwd"}
_PROSE = {b"password", b"passphrase", b"secret", b"token", b"credential", b"pwd"}
_NOTHING = {b"none", b"null", b"true", b"false", b"nil", b"undefined", b"redacted", b"env", b""}
_PLACEHOLDER = re.compile(
    rb"(?i)your|example|placeholder|changeme|change_me|dummy|redacted|x{4,}|\*{3,}|\.{3}"
    rb"|\A(?:user(?:name)?|pass(?:word)?|pw|secret|token|key|test|foo|bar|abc|123+)\Z|[<>{}$]"
    rb"|%(?![0-9A-Fa-f]{2})"
)

_BEARER = re.compile(
    rb"(?i:bearer|basic|digest|token)\s+(?P<secret>(?=[A-Za-z._~+/-]*[0-9])[\w.~+/-]{12,}=*)"
)
_AUTHORIZATION = re.compile(
    rb"(?i:authorization\\*[\"']?\s*[:=]\s*\\*[\"']?(?:[a-z][a-z0-9-]{1,20}\s+)?)"
    rb"(?!(?i:bearer|basic|token|digest)\b)"
    rb"(?P<secret>(?=[a-z._~+/-]*[A-Z0-9]|[a-z]{24})[\w.~+/-]{6,}=*)"
)
_NETRC = re.compile(rb"login\s+\S+\s+password\s+(?P<secret>\S+)")
_WANDB_LOGIN = re.compile(rb"wandb\s+login\s+(?:--\S+\s+)*(?P<secret>[0-9a-f]{40})")
_CRUMB = rb"[^\s=;,\"'\\]+=[^\s;,\"'\\]*"
_COOKIE = re.compile(
    rb"(?i:cookie)\\*[\"']?\s*:\s*\\*[\"']?(?P<secret>" + _CRUMB + rb"(?:;\s?" + _CRUMB + rb")*)"
)
# What logs in on a command line: curl, sshpass, mysql.
_CURL = re.compile(
    rb"curl\b[^\n|]{0,400}?\s(?:-u|--user|--proxy-user)[\s=]{1,3}[\"'\\]*"
    rb"[^\s:\"']*:(?P<secret>[^\s\"'\\]+)"
)
_SSHPASS = re.compile(rb"sshpass\s+-p\s*[\"'\\]*(?P<secret>[^\s\"'\\]+)")
_MYSQL = re.compile(rb"mysql(?:dump|admin)?\s[^\n|]{0,200}?-p(?P<secret>[^\s\"'\\]{4,})")
# Name and password of a registry, in one: `"auth": "bWU6..."`, `_auth=bWU6...`.
_REGISTRY = re.compile(
    rb"auth\\*[\"']?\s{0,3}[:=]\s{0,3}\\*[\"']?(?P<secret>[A-Za-z0-9+/]{12,}={0,2})"
)
_KAGGLE = re.compile(
    rb"username\\*[\"']\s*:\s*\\*[\"'][^\"'\\]+\\*[\"']\s*,\s*\\*[\"']key\\*[\"']\s*:\s*\\*[\"']"
    rb"(?P<secret>[0-9a-f]{32})"
)

# A path library makes one slash of two.
_URL = re.compile(
    rb":/{1,2}(?:(?:(?P<user>[^\s/?#@:\"'<>\\]*):(?P<password>[^\s/?#\"'<>\\]+)"
    rb"|(?P<only>[^\s/?#@:\"'<>\\]{16,}))@)?[^\s\"'<>?#\\]*"
    rb"(?:\?(?P<query>[^\s\"'<>#]*))?"
)
_SIGNATURE = re.compile(rb"(?<=[?&])sig=(?P<secret>[^&\s\"'<>#\\]+)")
_PARAMETER = re.compile(rb"(?P<name>[^=&;]+)=(?P<value>[^&;]*)")
_SECRET_PARAMETER = re.compile(
    rb"(?i)(?:^|[_.-])(?:sig|signature|token|key|apikey|auth|password|passwd|pwd|pass|secret|code"
    rb"|credential|session|jwt|awsaccesskeyid|key-pair-id)$"
)
_NAMES_A_SECRET = re.compile(r"(?i)(?:token|api_?key|secret|password|passwd|credential)s?$")


def find_secrets(content: bytes, *, certain: bool = False) -> Iterator[Found]:
    """Find the secrets in a text.

    Args:
        content: of the text, in UTF-8.
        certain: only what is hardly anything else, for data and prose that are about to be
            published; otherwise whatever stands where a secret stands, for records and logs.
    """
    for shape in SHAPES:
        for start in _starts(content, shape.literals):
            if match := shape.pattern.match(content, max(0, start - shape.before)):
                yield Found(shape.what, *match.span())

    lowered = content.lower()
    yield from _find_headers(content, lowered)
    yield from _find_in_urls(content, certain)
    yield from _find_assigned(content, lowered, certain)


def hide_secrets(text: str, values: Mapping[str, str] | None = None) -> str:
    """Return the text with each secret replaced by `<redacted>`; its name stays.

    Args:
        values: secrets that are known by their value, as from `secrets_of_environment`.
    """
    for value in values or ():
        text = text.replace(value, _REPLACEMENT)

    content = text.encode("utf-8", "surrogatepass")
    spans = sorted((start, end) for _, start, end in find_secrets(content))
    if not spans:
        return text

    parts, position = [], 0
    for start, end in spans:
        # One secret may be found by several rules.
        if start >= position:
            parts += [content[position:start], _REPLACEMENT.encode()]
        position = max(position, end)
    parts.append(content[position:])
    return b"".join(parts).decode("utf-8", "surrogatepass")


def secrets_of_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values of the variables that are named as a secret: value to name."""
    return {
        value: name
        for name, value in environment.items()
        if _NAMES_A_SECRET.search(name) and _is_known_value(value)
    }


def _is_known_value(value: str) -> bool:
    """Return whether a variable's value can be looked for in every text."""
    a_word = value.isascii() and value.isalpha() and value.islower()
    if len(value) < SHORTEST_VALUE or a_word:
        return False
    # A folder of secrets is none itself.
    try:
        return not Path(value).exists()
    except (OSError, ValueError):
        return True


def _starts(content: bytes, literals: tuple[bytes, ...]) -> Iterator[int]:
    """Return where one of these stands in the content."""
    for literal in literals:
        start = content.find(literal)
        while start >= 0:
            yield start
            start = content.find(literal, start + 1)


def _find_headers(content: bytes, lowered: bytes) -> Iterator[Found]:
    """Find what a header of HTTP, a netrc and a login on the command line carry."""
    rules = (
        ("a bearer token", (b"bearer", b"basic ", b"digest "), _BEARER),
        ("an authorization header", (b"authorization",), _AUTHORIZATION),
        ("a password of a netrc", (b"login",), _NETRC),
        ("a Weights & Biases key", (b"wandb",), _WANDB_LOGIN),
        ("a cookie", (b"cookie",), _COOKIE),
        ("a password of a command", (b"curl",), _CURL),
        ("a password of a command", (b"sshpass",), _SSHPASS),
        ("a password of a command", (b"mysql",), _MYSQL),
        ("a Kaggle key", (b"username",), _KAGGLE),
        ("a signed URL", (b"sig=",), _SIGNATURE),
        ("a password of a registry", (b"auth",), _REGISTRY),
    )
    for what, words, pattern in rules:
        for start in _starts(lowered, words):
            match = pattern.match(content, start)
            if match is None or (pattern is _REGISTRY and not _holds_password(match["secret"])):
                continue

            # `sig=3` and `cookie: a=b` are said in prose as well.
            values = re.split(rb"[=;\s]+", match["secret"])
            if pattern not in (_COOKIE, _SIGNATURE) or any(map(_is_random, values)):
                yield Found(what, *match.span("secret"))


def _holds_password(value: bytes) -> bool:
    """Return whether a value is a name, a colon and a password in base64."""
    try:
        decoded = base64.b64decode(value, validate=True)
    except binascii.Error:
        return False
    return re.fullmatch(rb"[\x21-\x7e]+:[\x20-\x7e]{4,}", decoded) is not None


def _find_in_urls(content: bytes, certain: bool) -> Iterator[Found]:
    """Find the passwords and the signatures of URLs."""
    for start in _starts(content, (b":/",)):
        match = _URL.match(content, start)
        if match is None:
            continue

        password = match["password"]
        example = certain and password and (len(password) < 6 or _PLACEHOLDER.search(password))
        if password and not example:
            yield Found("a password in a URL", *match.span("password"))
        if match["only"] and _is_random(match["only"]):
            yield Found("a token in a URL", *match.span("only"))
        if match["query"] is None:
            continue

        for parameter in _PARAMETER.finditer(content, *match.span("query")):
            value = parameter["value"]
            named = _SECRET_PARAMETER.search(parameter["name"]) is not None
            random = len(value) >= 12 and _is_random(value)
            if (named and random) or (not certain and (named or random)):
                yield Found("a signed URL", *parameter.span("value"))


def _find_assigned(content: bytes, lowered: bytes, certain: bool) -> Iterator[Found]:
    """Find the values of names: `WANDB_API_KEY=...`, `--hub_token ...`, JSON's too."""
    for start in _starts(content, (b"--",)):
        if (match := _FLAG.match(content, start)) is None:
            continue
        group = "quoted" if match["quoted"] is not None else "bare"
        is_vague = match["word"].lower() == b"key" and not _SECRET_KEY.search(match["before"])
        value = match[group]
        if _NO_SECRET.search(match["before"]) or value.lower() in _NOTHING:
            continue
        if not (certain or is_vague) or (len(value) >= 16 and _is_random(value)):
            yield Found("the value of a flag", *match.span(group))

    for word in _WORDS:
        for start in _starts(lowered, (word,)):
            match = _ASSIGNED.match(content, start + len(word))
            if match is None:
                continue

            group = "quoted" if match["quoted"] is not None else "bare"
            before = content[max(0, start - 40) : start]
            if _names_a_secret(word, before, match, match[group], certain):
                yield Found(f"the value of a {word.decode().strip('_')}", *match.span(group))


def _names_a_secret(
    word: bytes, before: bytes, match: re.Match[bytes], value: bytes, certain: bool
) -> bool:
    """Return whether a name and what follows it are a secret and its name."""
    # What people choose themselves is shorter than what a service draws.
    if certain and len(value) < (10 if word in _CHOSEN or match["closed"] else 16):
        return False
    named = _NAME_BEFORE.search(before)
    prefix = named[0] if named else b""
    sign = match["sign"].strip()
    if value.lower().strip(b".:") in _NOTHING or _NO_SECRET.search(before):
        return False
    # `num_tokens=` counts, and what is called or indexed is code.
    bare = match["quoted"] is None
    if (match["plural"] and word == b"token") or (bare and _is_code(match)):
        return False
    # `<|endoftext|>` and `[PAD]` are tokens of another kind.
    if re.fullmatch(rb"\s*|<.*>|\[.*\]", value):
        return False
    if certain:
        return not _PLACEHOLDER.search(value) and _is_random(value)
    # A key, a pat and a token by itself name many things: the value decides.
    vague = word in (b"_pat", b"signature") or (word == b"key" and not _SECRET_KEY.search(before))
    spaced_token = word == b"token" and (not prefix or (bare and match["sign"] == b" = "))
    if vague or spaced_token:
        return bool(prefix or spaced_token) and len(value) >= 12 and _is_random(value)
    if word == b"token" and value.isdigit():
        return False

    # `The secret: kindness` is a sentence; `password: hunter2` and `"password": "x"` are none.
    in_prose = word in _PROSE and (not prefix or word == b"token")
    is_prose = in_prose and sign == b":" and not match["closed"]
    return not (is_prose and bare and value.rstrip(b".!?").isalpha())


def _is_code(match: re.Match[bytes]) -> bool:
    """Return whether an unquoted value is an expression: `getpass(`, `config.token`."""
    following = match.string[match.end() : match.end() + 1]
    spaced = match["sign"].startswith(b" ") or match["sign"] == b": "
    name = re.fullmatch(rb"[A-Za-z_][A-Za-z_0-9]*(?:\.[A-Za-z_][A-Za-z_0-9]*)+", match["bare"])
    return following in (b"(", b"[") or (spaced and name is not None)


def _is_random(value: bytes) -> bool:
    """Return whether a value looks drawn by chance: no word, path, name or number."""
    has_digit, has_letter = re.search(rb"[0-9]", value), re.search(rb"[A-Za-z]", value)
    if not has_digit or not has_letter or re.search(rb"\s|://|\A[./~]", value):
        return False

    # Words and numbers that are joined, as in `runs/sft-v2/checkpoint-500`, are a name.
    pieces = re.split(rb"[-_./:]+", value)
    longest = max(pieces, key=len)
    if len(pieces) > 1 and all(p.isalpha() or p.isdigit() or len(p) < 6 for p in pieces):
        return False
    return len(longest) >= 8 and _entropy(value) >= 2.8


@functools.lru_cache(maxsize=1024)
def _entropy(value: bytes) -> float:
    """Return the entropy of a value's characters, in bits a character."""
    counts = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts)
