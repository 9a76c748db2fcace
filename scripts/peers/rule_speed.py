"""Times every update rule on one shape, by each executor, and prints a Markdown table.

Started by scripts/rule-speed with the Python that has the peers, and with --host. A rule is timed by `fwp-host bench`,
right after the additive rule, so that both meet the same machine; a rule without a chunk form is timed beside the
eager loop of loops.py as well, which is first compared with the plugin.

The reference and the loops take long: each is first timed on a short sequence, and on the whole one only where that
is affordable. Where it is not, the time is that of the longest affordable sequence times the ratio of lengths, with a
`~` in front: both walk from step to step, so their time is proportional to the length.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import sys
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from compare_text import BUSY, BUSY_DURING, FAILED, Failure, Others, machine_before, output_of, processor

HERE = pathlib.Path(__file__).resolve().parent
DOCUMENT = HERE.parent.parent / "docs" / "rules.md"
# What --write replaces is between these lines.
BEGIN, END = "<!-- rule-speed: begin -->", "<!-- rule-speed: end -->"
Json = Dict[str, Any]

YARDSTICK = "additive"
FAST = ("chunkwise", "scan")
# Beyond these a rule has to be explained.
SLOWEST = 3.0  # times the additive rule, for a rule with a chunk form
LEAST = 50.0  # times faster than its eager loop, for a rule without
PROBE = 128  # steps that tell how long the reference takes

# Rules whose settings change what they cost are measured with those as well.
VARIANTS = {
    "delta": ["attention_normalisation=true"],
    "longhorn": ["write_strength=scalar"],
    "titans": ["depth=2 rate=0.01"],
}

# Why a rule is slower than it should be, by its name and settings; printed only where it is.
REMARKS: Dict[str, str] = {
    "delta-lstm": "six matrices, 96 KiB a head, are more than the nearest cache holds: "
    "every step forwards reads and writes them in the next one",
    "fwp-1991": "a tanh of every element of the matrix at every step; "
    "the walk back computes it twice more, because no step can be taken back",
    "gsa": "two memories with a decay for every slot and a softmax between their reads: each is as much work as `gla`",
    "log-linear": "decay and read go through all 11 matrices at every step, 176 KiB a head, forwards and, "
    "with their gradients, back; levels that hold nothing are not left out",
    "rwkv7": "decays of columns and a transition of rank one in one step: it can be neither taken back nor carried, "
    "so the walk back reads states that are stored for every step of a segment",
    "srwm": "three times the rows, and two reads that wait for each other: "
    "matrix and gradient are more than the nearest cache holds",
    "titans": "weights and momenta fade, so the walk back computes them again and stores both for every step of a segment: "
    "32 KiB a head and step, beside as much of gradients",
    "titans depth=2 rate=0.01": "weights and momenta of two layers are 256 KiB a head and fade, so the walk back computes "
    "them again and stores them for every step of a segment: its time is that of the second-level cache and of memory",
    "ttt-linear": "weights and sums are stored for every step of a segment on the walk back, "
    "although the weights change every 16 steps only",
    "ttt-mlp": "weights and sums of two layers are 256 KiB a head and stored for every step of a segment on the walk back, "
    "although the weights change every 16 steps only",
}


class Subject(NamedTuple):
    """A rule with settings, as one row."""

    rule: str
    settings: Tuple[str, ...]

    @property
    def name(self) -> str:
        """As loops.py and REMARKS have it."""
        return " ".join([self.rule, *self.settings])


class Time(NamedTuple):
    """Milliseconds for the whole sequence, and whether they were measured on a part of it."""

    ms: float
    extrapolated: bool = False

    def __str__(self) -> str:
        return ("~" if self.extrapolated else "") + figure(self.ms)


def figure(value: float) -> str:
    """Three figures."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class Run:
    """What all rules share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        threads = str(arguments.threads)
        self.environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
        # Not above: the command line is checked by a Python that has no torch.
        from loops import CASES  # pylint: disable=import-outside-toplevel

        self.loops = set(CASES)

    def host(self, *command: str) -> Any:
        """What fwp-host prints as JSON."""
        return json.loads(output_of([self.arguments.host, *command, "--json"], self.environment))

    def subjects(self) -> List[Subject]:
        """All rules that are installed, variants behind their rules."""
        found = []
        for part in self.host("plugins", "list")["parts"]:
            if part["kind"] == "update-rule":
                variants = [tuple(v.split(" ")) for v in VARIANTS.get(part["name"], [])]
                found += [Subject(part["name"], settings) for settings in [(), *variants]]
        return sorted(found, key=lambda s: (s.rule != YARDSTICK, s.name))

    def bench(self, subject: Subject, executors: Tuple[str, ...], steps: int, rounds: int, seconds: float) -> Dict[str, Json]:
        """A row for each executor, by name, whether it applies or not."""
        a = self.arguments
        command = ["bench", "--rule", subject.rule, "--exec", ",".join(executors), "--batch", str(a.batch)]
        command += ["--heads", str(a.heads), "--time", str(steps), "--key-dim", str(a.dim), "--value-dim", str(a.dim)]
        command += ["--dtype", "float32", "--threads", str(a.threads), "--no-peak"]
        command += ["--rounds", str(rounds), "--seconds", str(seconds)]
        for setting in subject.settings:
            command += ["--set", setting]
        return {row["executor"]: row for row in self.host(*command)}

    def reference(self, subject: Subject) -> Time:
        """The reference, on as long a sequence as can be afforded."""
        steps = min(PROBE, self.arguments.time)
        ms = self.bench(subject, ("reference",), steps, 1, 1.0)["reference"]["total_ms"]
        longer = self.arguments.time
        while longer > steps and ms * longer / steps > 1e3 * self.arguments.seconds:
            longer //= 2
        if longer > steps:
            steps, ms = longer, self.bench(subject, ("reference",), longer, 1, 1.0)["reference"]["total_ms"]
        return Time(ms * self.arguments.time / steps, steps < self.arguments.time)

    def loop(self, subject: Subject) -> Optional[Time]:
        """The eager loop, where there is one for these settings."""
        if subject.name not in self.loops:
            return None
        a = self.arguments
        command = [sys.executable, str(HERE / "loops.py"), "--rule", subject.name, "--host", a.host]
        command += ["--batch", str(a.batch), "--heads", str(a.heads), "--time", str(a.time), "--dim", str(a.dim)]
        command += ["--threads", str(a.threads), "--seconds", str(a.seconds)]
        found = json.loads(output_of(command, self.environment))
        return Time(found["ms"] * a.time / found["time"], found["time"] < a.time)

    def measure(self, subject: Subject) -> Json:
        """One row."""
        a = self.arguments
        settings = [word for setting in subject.settings for word in ("--set", setting)]
        analysis = self.host("plugins", "show", subject.rule, "--kind", "update-rule", *settings)["analysis"]
        chunked = analysis["executors"]["chunkwise"]["applies"]
        others = Others()
        yardstick = self.bench(Subject(YARDSTICK, ()), FAST, a.time, a.rounds, 1.0)
        ours = yardstick if subject.name == YARDSTICK else self.bench(subject, FAST, a.time, a.rounds, a.seconds)
        times = {name: Time(row["total_ms"]) for name, row in ours.items() if row["applies"]}
        additive = min(row["total_ms"] for row in yardstick.values() if row["applies"])
        times["reference"] = self.reference(subject)
        loop = None if chunked else self.loop(subject)
        best = min(times, key=lambda n: times[n].ms)
        return {
            "rule": subject.name,
            "class": classes(analysis["strata"]),
            "chunk_form": chunked,
            "times": {n: t._asdict() for n, t in times.items()},
            "best": best,
            "tokens_per_second": 1e3 * a.batch * a.time / times[best].ms,
            # A kernel is there for every rule, chunks where the analysis has a form: otherwise somebody should know why.
            "refused": {n: row["why"] for n, row in ours.items() if not row["applies"] and (n == "scan" or chunked)},
            "additive_ms": additive,
            "to_additive": times[best].ms / additive,
            "loop": loop and loop._asdict(),
            "to_loop": loop and loop.ms / times[best].ms,
            "others_busy": round(others.load(), 3),
        }


def classes(strata: List[Json]) -> str:
    """The class of every state; the states are named where there are several classes."""
    by_class: Dict[str, List[str]] = {}
    for stratum in strata:
        by_class.setdefault(stratum["class"], []).extend(stratum["states"])
    if len(by_class) == 1:
        return next(iter(by_class))
    return "; ".join(f"{', '.join(states)}: {name}" for name, states in by_class.items())


def slow(row: Json) -> bool:
    """Whether the row has to be explained."""
    if row["chunk_form"]:
        return row["to_additive"] > SLOWEST
    return row["to_loop"] is None or row["to_loop"] < LEAST


def remark(row: Json) -> str:
    """Why a slow rule is slow, and which executor that should serve does not."""
    said = [f"{name}: {why}" for name, why in row["refused"].items()]
    if slow(row):
        nothing = not row["chunk_form"] and row["to_loop"] is None
        said.append("no loop to compare with" if nothing else REMARKS.get(row["rule"], "**to be explained**"))
    return "; ".join(said)


def report(document: Json) -> str:
    """The table with what it says."""
    shape = document["shape"]
    lines = [
        f"B{shape['batch']} H{shape['heads']} T{shape['time']} d{shape['dim']}, float32, forward and backward, milliseconds; "
        f"{document['threads']} threads of {document['processor']}, PyTorch {document['torch']} for the loops"
        + (", a trial run that says little about speed." if document["quick"] else "."),
        f"*Additive* is the time of the fastest executor relative to that of `{YARDSTICK}`, measured just before; *loop* is "
        "by how much it is faster than the eager loop in PyTorch, which only rules without a chunk form are held against.",
        f"`~` was measured on a shorter sequence. A rule with a chunk form that takes more than {SLOWEST:.0f} times as long as "
        f"`{YARDSTICK}`, and one without that is less than {LEAST:.0f} times faster than its loop, has a remark.",
        "",
        "| rule | class found | reference | chunkwise | scan | tokens/s | additive | loop | remark |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    flagged = False
    for row in document["rules"]:
        busy = row["others_busy"] > BUSY_DURING
        flagged |= busy
        times = {n: str(Time(**t)) for n, t in row["times"].items()}
        times[row["best"]] = f"**{times[row['best']]}**"
        cells = [times.get(n, "-") for n in ("reference", *FAST)]
        faster = "" if row["to_loop"] is None else ("~" if row["loop"]["extrapolated"] else "") + figure(row["to_loop"]) + "x"
        rule, *settings = row["rule"].split(" ")
        name = f"`{rule}`" + "".join(f" {s}" for s in settings) + ("!" if busy else "")
        lines.append(
            f"| {name} | {row['class']} | {' | '.join(cells)} | {figure(row['tokens_per_second'])} "
            f"| {figure(row['to_additive'])}x | {faster} | {remark(row)} |"
        )
    if flagged:
        lines += ["", "! others kept the machine busy meanwhile: measure again when it is idle."]
    return "\n".join(lines)


def write(table: str) -> None:
    """Puts the table into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise Failure(f"{DOCUMENT} has no lines '{BEGIN}' and '{END}'")
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def parse(arguments: List[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="rule-speed", description="Every update rule on one shape, forward and backward, by each executor."
    )
    parser.add_argument("--only", metavar="RULE", action="append", help="one rule, with its variants; may be repeated")
    parser.add_argument("--batch", type=int, default=2, metavar="B", help="sequences (default: 2)")
    parser.add_argument("--heads", type=int, default=4, metavar="H", help="heads (default: 4)")
    parser.add_argument("--time", type=int, metavar="T", help="steps (default: 1024; 128 with --quick)")
    parser.add_argument("--dim", type=int, default=64, metavar="D", help="elements of a key and of a value (default: 64)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of a fast executor (default: 7; 1 with --quick)")
    parser.add_argument("--seconds", type=float, metavar="S", help="what one timing may take (default: 2; 0.5 with --quick)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of each side (default: 2)")
    parser.add_argument("--quick", action="store_true", help="a short sequence and one round: whether it works, not how fast it is")
    parser.add_argument("--anyway", action="store_true", help="measure although the machine is busy")
    parser.add_argument("--write", action="store_true", help="put the table into docs/rules.md as well")
    parser.add_argument("--output", metavar="FILE", help="write all figures into a JSON file as well")
    parser.add_argument("--host", help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    for name, usual, quick in (("time", 1024, 128), ("rounds", 7, 1), ("seconds", 2.0, 0.5)):
        if getattr(parsed, name) is None:
            setattr(parsed, name, quick if parsed.quick else usual)
    if min(parsed.batch, parsed.heads, parsed.time, parsed.dim, parsed.rounds, parsed.threads) < 1 or parsed.seconds <= 0:
        parser.error("sizes, rounds, threads and seconds must be above 0")
    if parsed.write and (parsed.only or parsed.quick):
        parser.error("--write is for a whole measurement: not with --only or --quick")
    return parsed


def main() -> int:
    """Measures and prints."""
    arguments = parse(sys.argv[1:])
    if arguments.check:
        return 0
    state = machine_before("rule-speed", arguments.anyway)
    if state is None:
        return BUSY
    load_average, _ = state
    run, rows, failed = Run(arguments), [], []
    subjects = [s for s in run.subjects() if not arguments.only or s.rule in arguments.only]
    unknown = set(arguments.only or []) - {s.rule for s in subjects}
    if unknown:
        print(f"rule-speed: there is no update rule {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    began = time.monotonic()
    for number, subject in enumerate(subjects, 1):
        print(f"{subject.name}: {number} of {len(subjects)}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        try:
            rows.append(run.measure(subject))
        except (Failure, KeyError) as failure:
            # The other rules are worth having.
            failed.append(subject.name)
            print(f"rule-speed: {subject.name}: {failure}", file=sys.stderr)
    document: Json = {
        "shape": {"batch": arguments.batch, "heads": arguments.heads, "time": arguments.time, "dim": arguments.dim},
        "threads": arguments.threads,
        "quick": arguments.quick,
        "torch": importlib.metadata.version("torch"),
        "processor": processor(),
        "load_average": load_average,
        "seconds": round(time.monotonic() - began),
        "rules": rows,
        "failed": failed,
    }
    if arguments.output:
        pathlib.Path(arguments.output).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    table = report(document)
    print(table)
    if arguments.write:
        write(table)
    return FAILED if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
