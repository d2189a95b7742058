"""`pytest --compile-report`: where the time of the tests goes, file by file and for the slowest tests.

Seconds are seconds of the clock, those of the column `cpu` of the processor. `trace`, `lower` and `compile`
are what JAX reports of itself: from Python functions to jaxprs, from these to StableHLO, and XLA. `found` are
programs that came from the cache on disk; the time of reading them is in `compile`. What is left of a test's
time is running: compiled code, numpy, files.
"""

import time
from collections import defaultdict

import jax
import pytest


DURATIONS = {
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
TRACE = "/jax/core/compile/jaxpr_trace_duration"
COLUMNS = ("tests", "wall", "cpu", "trace", "lower", "compile", "programs", "found")
NAME = "compiling"


class Meter:
    """Sums of this process, and what was added since the last look."""

    def __init__(self):
        self.sums, self.seen = defaultdict(float), {}
        # Ends of traces: a trace inside of another one is in the other one's time already.
        self.traces: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self.duration)
        jax.monitoring.register_event_listener(self.event)

    def duration(self, name, seconds, **_):
        if name == TRACE:
            now = time.perf_counter()
            while self.traces and self.traces[-1][0] > now - seconds:
                self.sums["trace"] -= self.traces.pop()[1]
            self.traces.append((now, seconds))
            self.sums["trace"] += seconds
        elif name in DURATIONS:
            self.sums[DURATIONS[name]] += seconds
            self.sums["programs"] += DURATIONS[name] == "compile"

    def event(self, name, **_):
        self.sums["found"] += name == "/jax/compilation_cache/cache_hits"

    def look(self):
        self.sums["wall"], self.sums["cpu"] = time.perf_counter(), time.process_time()
        added = {k: v - self.seen.get(k, 0.0) for k, v in self.sums.items()}
        self.seen = dict(self.sums)
        return added


class Report:
    """Measures each phase of each test and prints tables at the end; with xdist the workers measure."""

    def __init__(self):
        self.meter = Meter()
        self.tests = defaultdict(lambda: defaultdict(float))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.meter.look()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        report.user_properties = [(NAME, self.meter.look())]
        return report

    def pytest_runtest_logreport(self, report):
        sums = self.tests[report.nodeid]
        sums["tests"] += report.when == "call"
        for name, added in report.user_properties:
            if name == NAME:
                for key, value in added.items():
                    sums[key] += value

    def pytest_terminal_summary(self, terminalreporter):
        files = defaultdict(lambda: defaultdict(float))
        for test, sums in self.tests.items():
            for key, value in sums.items():
                files[test.split("::")[0]][key] += value
                files["all"][key] += value
        slowest = sorted(self.tests, key=lambda test: -self.tests[test]["cpu"])[:40]
        terminalreporter.section("compiling, by file")
        self.table(terminalreporter, files)
        terminalreporter.section("compiling, the tests that take most")
        self.table(terminalreporter, {test: self.tests[test] for test in slowest})

    @staticmethod
    def table(terminalreporter, rows):
        terminalreporter.write_line("".join(f"{c:>9}" for c in COLUMNS))
        for name, sums in sorted(rows.items(), key=lambda row: -row[1]["cpu"]):
            digits = {"tests": 0, "programs": 0, "found": 0}
            row = "".join(f"{sums[c]:9.{digits.get(c, 1)}f}" for c in COLUMNS)
            terminalreporter.write_line(f"{row}  {name}")
