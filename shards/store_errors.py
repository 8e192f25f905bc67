"""Turn the errors of store clients that no retry can fix into one-line messages.

Errors are recognised by their class name and attributes: each client has its own classes, and it may not be installed.
"""

LOG_IN = "set HF_TOKEN or run: hf auth login"
DENIED = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
          "TokenRetrievalError", "DefaultCredentialsError", "RefreshError"}  # fmt: skip
HUB = {  # errors of huggingface_hub; the first match counts, because GatedRepoError is a RepositoryNotFoundError
    "GatedRepoError": f"access is restricted: accept the conditions on the repository's page at the Hub, then {LOG_IN}",
    "RepositoryNotFoundError": f"the repository does not exist or is private; check the URL, or {LOG_IN}",
    "RevisionNotFoundError": "the revision does not exist; check the part of the URL after the @",
    "EntryNotFoundError": "the file does not exist; check the URL",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set; unset it",
}


def final(error: Exception) -> str:
    """Why no retry can fix this error, and what to do; "" if a retry may help."""
    kinds = _kinds(error)
    if known := of_the_hub(error):
        return known
    if kinds & {"HFValidationError", "HfUriError"}:
        return f"not a path on the Hub ({one_line(error)})"
    if _is_missing(error):
        return "the file or bucket does not exist; check the URL"
    if _is_denied(error):
        hub = "HfHubHTTPError" in kinds
        return f"no permission ({one_line(error)}); {LOG_IN if hub else 'set the credentials'}"
    return ""


def of_the_hub(error: Exception) -> str:
    """The message for an error of huggingface_hub about a repository, revision or file; "" for any other error."""
    kinds = _kinds(error)
    return next((text for name, text in HUB.items() if name in kinds), "")


def _kinds(error: Exception) -> set[str]:
    return {kind.__name__ for each in (error, error.__cause__) if each for kind in type(each).__mro__}


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _is_missing(error: Exception) -> bool:
    """Whether the file is missing. fsspec's HTTP also raises FileNotFoundError if it cannot connect, or loses the
    connection."""
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
