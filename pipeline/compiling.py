"""Numba's compiler with an on-disk cache that may fail: compiled once if possible, otherwise in each process.

Numba keeps compiled code in $NUMBA_CACHE_DIR, beside the source, or in the user's cache directory. In a container
these may not be writable or may have no room, and a cached file may be damaged. Numba then raises various errors, long
after the decorator. This module instead compiles the code for the current process alone, and rank 0 prints one line,
once. Worker processes print nothing.

Importing this imports numba, which takes a second.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

from numba import njit, types
from numba.core import cgutils, sigutils
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., object])


@intrinsic
def pointer(context, address):  # type: ignore[no-untyped-def]
    """Convert an integer to a pointer in compiled code. `carray` makes an array from it."""
    return types.voidptr(address), lambda cg, builder, signature, args: builder.inttoptr(args[0], cgutils.voidptr_t)


def compiled(
    *,
    fastmath: bool | set[str] = False,
    error_model: Literal["python", "numpy"] = "python",
    nogil: bool = False,
    inline: Literal["never", "always"] = "never",
) -> Callable[[Function], Function]:
    """A decorator like `numba.njit(cache=True, …)`."""

    def wrapped(function: Function) -> Function:
        dispatcher: object = njit(fastmath=fastmath, error_model=error_model, nogil=nogil, inline=inline)(function)
        if dispatcher is not function:  # NUMBA_DISABLE_JIT returns the function itself
            _keep(dispatcher, function)
        return cast(Function, dispatcher)

    return wrapped


def compiled_callback(signature: object) -> Callable[[Callable[..., object]], CFunc]:
    """A decorator like `numba.cfunc(signature, cache=True)`."""

    def wrapped(function: Callable[..., object]) -> CFunc:
        callback = CFunc(function, sigutils.normalize_signature(signature), locals={}, options={})
        _keep(callback, function)
        callback.compile()
        return callback

    return wrapped


def _keep(compilable: Any, function: Callable[..., object]) -> None:
    """Like `enable_caching`, with a cache that may fail."""
    try:
        compilable._cache = _Cache(function)
    except (RuntimeError, OSError):  # numba has no directory; the source cannot be read
        _say_once("numba finds no directory to keep compiled code in")


class _Cache(FunctionCache):
    """One function's cache files. Code that cannot be read is compiled again; if writing fails, it is not kept."""

    def load_overload(self, signature: object, target_context: object) -> object:
        try:
            return super().load_overload(signature, target_context)
        except OSError as error:
            self._leave(error)
        except Exception:  # unpickling a damaged file can raise anything
            self._empty()
        return None

    def save_overload(self, signature: object, data: object) -> None:
        try:
            super().save_overload(signature, data)
        except OSError as error:
            self._leave(error)

    def _empty(self) -> None:
        """Start a new index, so that the code compiled now is kept."""
        try:
            self.flush()
        except OSError as error:
            self._leave(error)

    def _leave(self, error: OSError) -> None:
        self.disable()
        _say_once(f"numba cannot keep compiled code in {self.cache_path} ({error.strerror or error})")


_said: list[str] = []


def _say_once(what: str) -> None:
    if _said or os.environ.get("RANK", "0") != "0" or multiprocessing.parent_process():
        return
    _said.append(what)
    print(
        f"{what}: this process compiles its image kernels itself, which delays the start by a few seconds; "
        "set NUMBA_CACHE_DIR to a writable directory",
        file=sys.stderr,
    )
