"""Cheap options of XLA, for tests that speak neither of bits, nor of compiled text, nor of speed.

Nearly all the time of the tests is compiling. With these options it takes a fifth of the time with jax 0.10.1
and half of it with 0.12. The code is slower, three to four times in pair loops, and may differ in the last
digits. So tests that compare bits are compiled as users compile: those with the mark `full_xla`, and those
whose text, or the text of a helper or a fixture of theirs, has one of `WORDS`, unless they have the mark
`cheap_xla`: what they compare exactly (counts, copies, names) would be as equal with other options. Tests
that run longer than they compile have the mark `full_xla`, too. `pytest --full-xla` compiles everything so.
"""

import contextlib
import functools
import inspect
import os
import re
from pathlib import Path

import jax
from jax._src import compiler


WORDS = re.compile(r"array_equal|as_text|tobytes|\bbits?\b|bitwise|perf_counter|memory_analysis|compilations")
HERE = Path(__file__).parent
#: `jit` finds what it has compiled by a key that XLA's options are no part of, but this is: what was compiled
#: for a test of one kind is never used in a test of the other kind.
_kind = jax.make_user_context("full")
_cheap = False


def _with_cheap_options(*args, **kwargs):
    if _cheap and jax.__version__.startswith("0.10."):
        # The plain emitters of jax 0.10; 0.12 refuses the name.
        overrides = kwargs.get("env_options_overrides") or {}
        kwargs["env_options_overrides"] = {"xla_cpu_use_fusion_emitters": False, **overrides}
    return _compile_options(*args, **kwargs)


# Not public: without it only the public flag is set, and compiling takes longer.
_compile_options = getattr(compiler, "get_compile_options", None)
if _compile_options is not None:
    compiler.get_compile_options = _with_cheap_options


@contextlib.contextmanager
def cheap_xla():
    """Compiles with cheap options inside."""
    global _cheap
    before, _cheap = _cheap, True
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        with _kind("cheap"):
            yield
    finally:
        _cheap = before
        jax.config.update("jax_disable_most_optimizations", before)


def cheap_environment(**more: str) -> dict[str, str]:
    """Variables of a process that compiles with cheap options."""
    found = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **more}
    if jax.__version__.startswith("0.10."):
        found["XLA_FLAGS"] = f"{found.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
    return found


def switch_on():
    """Cheap options until the process ends, in all threads: for programs of their own."""
    global _cheap
    _cheap = True
    jax.config.update("jax_disable_most_optimizations", True)


@functools.cache
def _source(function) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""


@functools.cache
def _own(function) -> tuple[bool, tuple]:
    """Whether one of `WORDS` is in the source of a function or class, and those of ours that it names."""
    source, home = _source(function), inspect.getmodule(function)
    named = []
    for name in set(re.findall(r"\b[A-Za-z_]\w*", source)):
        other = getattr(home, name, None)
        if inspect.isfunction(other) or inspect.isclass(other):
            other = inspect.unwrap(other)
            if _is_ours(inspect.getmodule(other)):
                named.append(other)
    return bool(WORDS.search(source)), tuple(named)


@functools.cache
def _is_ours(module) -> bool:
    return HERE in Path(getattr(module, "__file__", None) or "/").parents


def needs_full_xla(item) -> bool:
    """Whether a test is compiled as users compile."""
    if item.get_closest_marker("full_xla") or item.config.getoption("--full-xla"):
        return True
    if item.get_closest_marker("cheap_xla"):
        return False
    function = getattr(item, "function", None)
    if function is None:
        return True
    fixtures = getattr(item, "_fixtureinfo", None)
    functions = [inspect.unwrap(function)]
    for definitions in fixtures.name2fixturedefs.values() if fixtures else ():
        functions += [d.func for d in definitions if _is_ours(inspect.getmodule(d.func))]
    waiting = [f for f in functions if f.__name__ not in ("room_for_compiled_code", "options_of_xla")]
    seen: set = set()
    while waiting:
        f = waiting.pop()
        if f in seen:
            continue
        seen.add(f)
        found, named = _own(f)
        if found:
            return True
        waiting += named
    return False
