"""Numba's compiler for functions that are the same in every run: compiled once, and kept on disk where that can be.

Numba keeps compiled code in $NUMBA_CACHE_DIR, beside the source, or in the user's cache directory. In a container none
of them may be writable, or stay so, or have room; and a file there may be damaged. Numba then raises errors of many
kinds, long after the decorator. Here the code is compiled for this process alone, and rank 0 says so in one line, the
first time. Worker processes say nothing.

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
    """In compiled code an integer as a pointer, of which `carray` makes an array."""
    return types.voidptr(address), lambda cg, builder, signature, args: builder.inttoptr(args[0], cgutils.voidptr_t)


def compiled(
    *,
    fastmath: bool | set[str] = False,
    error_model: Literal["python", "numpy"] = "python",
    nogil: bool = False,
    inline: Literal["never", "always"] = "never",
) -> Callable[[Function], Function]:
    """A decorator, as `numba.njit(cache=True, …)` is."""

    def wrapped(function: Function) -> Function:
        dispatcher: object = njit(fastmath=fastmath, error_model=error_model, nogil=nogil, inline=inline)(function)
        if dispatcher is not function:  # which it is under NUMBA_DISABLE_JIT
            _keep(dispatcher, function)
        return cast(Function, dispatcher)

    return wrapped


def compiled_callback(signature: object) -> Callable[[Callable[..., object]], CFunc]:
    """A decorator, as `numba.cfunc(signature, cache=True)` is."""

    def wrapped(function: Callable[..., object]) -> CFunc:
        callback = CFunc(function, sigutils.normalize_signature(signature), locals={}, options={})
        _keep(callback, function)
        callback.compile()
        return callback

    return wrapped


def _keep(compilable: Any, function: Callable[..., object]) -> None:
    """What `enable_caching` does, with a cache that may fail."""
    try:
        compilable._cache = _Cache(function)
    except (RuntimeError, OSError):  # numba's for no directory; of reading the source
        _say_once("numba finds no directory to keep compiled code in")


class _Cache(FunctionCache):
    """One function's files. What cannot be read is compiled anew, what cannot be written is left."""

    def load_overload(self, signature: object, target_context: object) -> object:
        try:
            return super().load_overload(signature, target_context)
        except OSError as error:
            self._leave(error)
        except Exception:  # what unpickling a damaged file ends in can be anything
            self._empty()
        return None

    def save_overload(self, signature: object, data: object) -> None:
        try:
            super().save_overload(signature, data)
        except OSError as error:
            self._leave(error)

    def _empty(self) -> None:
        """Begin the index anew, so that what is compiled now is kept."""
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
        f"{what}: this process compiles what makes its images for itself, which delays its start by some seconds; "
        "set NUMBA_CACHE_DIR to a directory that can be written",
        file=sys.stderr,
    )
