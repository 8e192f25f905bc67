"""What a store's client raises → one line for people, where no second try mends it.

Errors are told by name and by what they carry, since each store's client has its own and none of them may be installed.
"""

LOG_IN = "set HF_TOKEN or run: hf auth login"
DENIED = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
          "TokenRetrievalError", "DefaultCredentialsError", "RefreshError"}  # fmt: skip
HUB = {  # of huggingface_hub; the first that fits, and a gated repository is one of its kinds of missing ones
    "GatedRepoError": f"access has to be asked for: accept its conditions on its page at the Hub, then {LOG_IN}",
    "RepositoryNotFoundError": f"there is no such repository, or it is private; look at the URL, or {LOG_IN}",
    "RevisionNotFoundError": "there is no such revision; look at what follows the @",
    "EntryNotFoundError": "there is no such file; look at the URL",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set; unset it",
}


def final(error: Exception) -> str:
    """Why it comes again however often the request is made, and what to do; "" for what may pass."""
    kinds = _kinds(error)
    if known := of_the_hub(error):
        return known
    if kinds & {"HFValidationError", "HfUriError"}:
        return f"is no path on the Hub ({one_line(error)})"
    if _is_missing(error):
        return "there is no such file or bucket; look at the URL"
    if _is_denied(error):
        hub = "HfHubHTTPError" in kinds
        return f"no permission ({one_line(error)}); {LOG_IN if hub else 'set the credentials'}"
    return ""


def of_the_hub(error: Exception) -> str:
    """What huggingface_hub has to say of a repository or revision; "" where that is not it."""
    kinds = _kinds(error)
    return next((text for name, text in HUB.items() if name in kinds), "")


def _kinds(error: Exception) -> set[str]:
    return {kind.__name__ for each in (error, error.__cause__) if each for kind in type(each).__mro__}


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _is_missing(error: Exception) -> bool:
    """fsspec's HTTP says so too where it cannot connect, or loses the connection."""
    cause = error.__cause__
    unreachable = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    unreachable |= type(cause).__module__.startswith("aiohttp.")
    status = getattr(cause, "status", None)
    return isinstance(error, FileNotFoundError) and (status in (404, 410) or (status is None and not unreachable))


def _is_denied(error: Exception) -> bool:
    status = getattr(error, "status", None) or getattr(error.__cause__, "status", None)  # aiohttp's
    status = status or getattr(error, "code", None)  # gcsfs's, whose 403 is an OSError with that text
    status = status or getattr(getattr(error, "response", None), "status_code", None)  # the Hub's
    forbidden = isinstance(error, OSError) and str(error).startswith("Forbidden: ")
    return isinstance(error, PermissionError) or forbidden or type(error).__name__ in DENIED or status in (401, 403)
