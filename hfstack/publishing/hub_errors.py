"""Explain a failed request to the Hub: is it transient, and what to do."""

from json import JSONDecodeError

from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from hfstack.errors import HubError

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S = 300.0
_MEANING = {
    401: "the token is not valid or there is none: set HF_TOKEN, or run `hf auth login`",
    403: "the token may not do that: make one that may write in the settings of the endpoint",
    404: "private, missing, or not for this token",
    409: "it is there already, but not for this token: choose another name",
    429: "too many requests: wait a while, then run this again; nothing is sent twice",
}


def causes(error: BaseException | None) -> list[BaseException]:
    """Return an error and what led to it, outermost first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of a failure, or None when there was no answer."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if response is not None:
            return int(response.status_code)
    return None


def is_network(error: BaseException) -> bool:
    """Return whether the network or the server failed, rather than our own code.

    An error page of a server shows as a JSONDecodeError.
    """
    return any(
        isinstance(cause, HTTPError | ConnectionError | TimeoutError | JSONDecodeError)
        for cause in causes(error)
    )


def is_transient(error: BaseException) -> bool:
    """Return whether a failure may pass: a busy server, a lost connection."""
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes(error)):
        return False
    status = status_of(error)
    return status is None or status in _PASSING


def retry_after_s(error: BaseException) -> float:
    """Return how long the server asks to wait, in seconds, 0 when it does not say."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if response is not None:
            asked = response.headers.get("Retry-After", "")
            # An endpoint is not trusted: it may ask for a year.
            is_number = asked.isascii() and asked.isdigit()
            return min(float(asked), _LONGEST_WAIT_S) if is_number else 0.0
    return 0.0


def as_hub_error(error: BaseException, url: str, endpoint: str) -> HubError:
    """Return a failure as one line that names the place and what to do."""
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes(error)):
        return HubError(f"{url} is out of reach, because HF_HUB_OFFLINE is set: unset it")

    # the server answered
    status = status_of(error)
    if status is not None:
        usual = "the server is in trouble: run this again later" if status >= 500 else "refused"
        message = getattr(error, "server_message", None)
        details = f"status {status}, {message}" if message else f"status {status}"
        return HubError(f"{url}: {_MEANING.get(status, usual)} ({details})")

    # nobody answered
    reason = " ".join(str(causes(error)[-1]).split())[:160] or type(error).__name__
    return HubError(
        f"{endpoint} cannot be reached ({reason}): check the address and the network, "
        "then run this again"
    )
