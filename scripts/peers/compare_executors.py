"""Runs the executors of fwp-host and PyTorch peers in turns and prints them side by side.

Started by scripts/compare-executors with the Python that has the peers, and with --host. Both sides get the same
shapes and number of threads, each waits for its threads as it does by default unless OMP_WAIT_POLICY is set, and which
side goes first changes every round. The time of a round is the least of its repetitions: what others on the same host take
from a virtual machine only adds. There are as many on both sides, fewer of peers that take longer than three seconds for
them. A ratio is that of one round of both, its spread is over the rounds, and the ratio of the medians of the repetitions
stands beside it.

Memory is the growth of resident memory during one forward and backward in a process of its own, for both sides
alike: glibc gives every allocation of 64 KiB or more back when it is freed, so that what is used again is seen.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any, Callable, Dict, List, Optional, Tuple

from compare_text import BUSY, BUSY_BEFORE, BUSY_DURING, FAILED, ZOO, Failure, Others, machine_before, output_of, processor, spread

HERE = pathlib.Path(__file__).resolve().parent
Json = Dict[str, Any]

# Steps of training before speed is measured, in peers as well.
WARM_UP = 20
# glibc: allocations of this size are mapped and unmapped one by one.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "65536"}


# The executors that compete; the reference takes seconds.
FAST = "chunkwise,scan"


class Run:
    """What all cases share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        threads = str(arguments.threads)
        self.environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "CUDA_VISIBLE_DEVICES": "",
        }

    def say(self, text: str) -> None:
        """Progress, on stderr."""
        print(text, file=sys.stderr, flush=True)

    def ours(
        self, rule: str, dim: int, steps: int, settings: List[str], executors: str, memory: bool = False
    ) -> Dict[str, Json]:
        """The figures of those executors that apply, by name; with memory, and then one round only."""
        command = [self.arguments.host, "bench", "--rule", rule, "--batch", "1", "--heads", "4", "--time", str(steps)]
        command += ["--key-dim", str(dim), "--value-dim", str(dim), "--dtype", "float32", "--json"]
        command += ["--threads", str(self.arguments.threads), "--exec", executors]
        command += ["--rounds", "1"] if memory else ["--rounds", str(self.arguments.inner), "--no-peak"]
        for setting in settings:
            command += ["--set", setting]
        rows = [row for row in json.loads(output_of(command, self.environment)) if row["applies"]]
        return {row["executor"]: row | {"least_ms": row["total_ms_range"][0]} for row in rows}

    def peers(self, case: str, dim: int, steps: int, more: List[str]) -> str:
        """What the peers print."""
        command = [sys.executable, str(HERE / "rules.py"), "--case", case, "--dim", str(dim), "--time", str(steps)]
        command += ["--threads", str(self.arguments.threads), "--rounds", str(self.arguments.inner), "--seconds", "3"]
        return output_of(command + more, self.environment | (MEMORY if "--peak" in more else {}))

    def in_turns(self, ours: Callable[[int], Any], peers: Callable[[int], Any], name: str) -> List[Tuple[Any, Any]]:
        """The results of both sides, round by round."""
        rounds = []
        for number in range(1, self.arguments.rounds + 1):
            self.say(f"{name}: round {number} of {self.arguments.rounds}")
            if number % 2:
                first = ours(number)
                rounds.append((first, peers(number)))
            else:
                second = peers(number)
                rounds.append((ours(number), second))
        return rounds


def middle(rounds: List[Dict[str, Json]], name: str, which: str = "least_ms") -> float:
    """The median over rounds of a form's time."""
    return statistics.median(r[name][which] for r in rounds if name in r)


def rule_case(run: Run, name: str, rule: str, dim: int, steps: int, settings: List[str]) -> Json:
    """One rule on one shape: executors against the fastest peer."""
    rounds = run.in_turns(
        lambda _: run.ours(rule, dim, steps, settings, FAST),
        lambda _: json.loads(run.peers(rule, dim, steps, [])),
        name,
    )
    ours, theirs = [r[0] for r in rounds], [r[1] for r in rounds]
    if not ours[0]:
        raise Failure(f"{name}: neither chunkwise nor scan applies to {rule}")
    # The best is the best over all rounds, not of each: otherwise luck would choose.
    best = min(ours[0], key=lambda n: middle(ours, n))
    peer = min(theirs[0], key=lambda n: middle(theirs, n))
    ratios = [b[peer]["least_ms"] / a[best]["least_ms"] for a, b in rounds]
    run.say(f"{name}: memory")
    memory = run.ours(rule, dim, steps, settings, FAST, memory=True)
    peaks = {n: row["peak_bytes"] for n, row in memory.items()}
    peer_peaks = {n: int(run.peers(rule, dim, steps, ["--peak", n])) for n in theirs[0]}
    return {
        "shape": f"B1 H4 T{steps} d{dim}",
        "unit": "ms",
        "best": best,
        "peer": peer,
        "value": middle(ours, best),
        "peer_value": middle(theirs, peer),
        "ratio": spread(ratios),
        "ratio_of_medians": middle(theirs, peer, "total_ms") / middle(ours, best, "total_ms"),
        "peak_bytes": peaks,
        "peer_peak_bytes": peer_peaks,
        "forms": {n: {"ms": middle(ours, n), "peak_bytes": peaks.get(n)} for n in ours[0]},
        "peer_forms": {n: {"ms": middle(theirs, n), "peak_bytes": peer_peaks[n]} for n in theirs[0]},
        "matmul_share": statistics.median(r[best]["share_of_matmul"] for r in ours),
    }


def training(run: Run, recipe: str, steps: int, seed: int, more: List[str]) -> float:
    """Steps a second of fwp-host, from the end of step WARM_UP to the end of the last one."""
    with tempfile.TemporaryDirectory(prefix="fwp-compare-") as folder:
        path = pathlib.Path(folder, "run")
        command = [run.arguments.host, "train", "--recipe", str(ZOO / recipe), "--steps", str(steps), "--seed", str(seed)]
        command += ["--device", "cpu", "--run-dir", str(path), "--progress", "none", "--set", "eval.every=0"]
        output_of(command + ["--set", "checkpoint.every=0", *more], run.environment)
        lines = (path / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["step"] >= WARM_UP and "train/loss" in r]
    return (records[-1]["step"] - records[0]["step"]) / (records[-1]["time"] - records[0]["time"])


def deltanet_case(run: Run, name: str) -> Json:
    """Training steps a second of zoo/deltanet against the eager loop of the same model."""
    steps = 60 if run.arguments.quick else 200

    def peer(number: int) -> float:
        command = [sys.executable, str(HERE / "associative.py"), "--steps", str(steps), "--seed", str(number)]
        printed = output_of(command + ["--threads", str(run.arguments.threads)], run.environment)
        return json.loads(printed)["steps_per_second"]

    # The recipe stops when it is good enough, which must not end the measurement.
    never = ["--set", "stop.eval_loss_at_most="]
    # A step of ours is so short that as many again are needed to measure it.
    rounds = run.in_turns(lambda number: training(run, "deltanet", 5 * steps, number, never), peer, name)
    return {
        "shape": "update task, 20 keys, batch 32",
        "unit": "steps/s",
        "best": "auto",
        "peer": "eager loop",
        "value": statistics.median(r[0] for r in rounds),
        "peer_value": statistics.median(r[1] for r in rounds),
        "ratio": spread([a / b for a, b in rounds]),
    }


def text_case(run: Run, name: str, rule: str) -> Json:
    """Training steps a second of zoo/deltanet-text against a peer's mixer."""
    steps = 100 if run.arguments.quick else 200
    data = run.arguments.data

    def peer(number: int) -> float:
        command = [sys.executable, str(HERE / "char_lm.py"), "--data", data, "--rule", rule]
        printed = output_of(command + ["--steps", str(steps), "--seed", str(number)], run.environment)
        return json.loads(printed)["tokens_per_second"] / (12 * 64)

    more = ["--data", data, "--set", "task.eval_windows=1"]
    rounds = run.in_turns(lambda number: training(run, "deltanet-text", steps, number, more), peer, name)
    return {
        "shape": "4 layers, width 128, batch 12, context 64",
        "unit": "steps/s",
        "best": "auto",
        "peer": "chunk form" if rule == "delta" else "softmax attention",
        "value": statistics.median(r[0] for r in rounds),
        "peer_value": statistics.median(r[1] for r in rounds),
        "ratio": spread([a / b for a, b in rounds]),
    }


def length_case(run: Run, name: str, executor: str) -> Json:
    """Twice the length: time and memory."""
    base = 512 if run.arguments.quick else 2048
    ratios, times = [], {base: [], 2 * base: []}
    for number in range(1, run.arguments.rounds + 1):
        run.say(f"{name}: round {number} of {run.arguments.rounds}")
        for steps in (base, 2 * base):
            row = run.ours("delta", 64, steps, [], executor).get(executor)
            if row is None:
                raise Failure(f"{name}: {executor} does not apply")
            times[steps].append(row["least_ms"])
        ratios.append(times[2 * base][-1] / times[base][-1])
    peaks = {steps: run.ours("delta", 64, steps, [], executor, memory=True)[executor]["peak_bytes"] for steps in times}
    return {
        "shape": f"delta B1 H4 d64, T{base} and T{2 * base}",
        "unit": "ms",
        "best": f"{executor} at T{2 * base}",
        "peer": f"{executor} at T{base}",
        "value": statistics.median(times[2 * base]),
        "peer_value": statistics.median(times[base]),
        "ratio": spread(ratios),
        "peak_bytes": {f"{executor} at T{n}": p for n, p in peaks.items()},
        "bytes_per_token": {f"T{n}": round(p / n) for n, p in peaks.items()},
    }


# What must be reached, and what is aimed at; the last cases have an upper bound.
CASES: Dict[str, Tuple[str, str]] = {
    "delta-64": (">= 5", ">= 8"),
    "delta-128": (">= 2.5", ">= 5"),
    "gated-delta": (">= 4", ">= 7"),
    "gla": (">= 4", ">= 7"),
    "delta-rnn": (">= 80", ">= 200"),
    "deltanet-training": (">= 10", ">= 30"),
    "text-training": (">= 2", ">= 2.4"),
    "text-training-softmax": ("", ">= 1"),
    "length-chunkwise": ("<= 2.1", "<= 2.1"),
    "length-scan": ("<= 2.1", "<= 2.1"),
}


def measure(run: Run, name: str) -> Json:
    """One case by its name."""
    steps = 512 if run.arguments.quick else 2048
    sigmoid = ["decay=sigmoid"]  # as the peers have it
    known: Dict[str, Callable[[], Json]] = {
        "delta-64": lambda: rule_case(run, name, "delta", 64, steps, []),
        "delta-128": lambda: rule_case(run, name, "delta", 128, steps, []),
        "gated-delta": lambda: rule_case(run, name, "gated-delta", 64, steps, sigmoid),
        "gla": lambda: rule_case(run, name, "gla", 64, steps, []),
        "delta-rnn": lambda: rule_case(run, name, "delta-rnn", 64, 128 if run.arguments.quick else 512, []),
        "deltanet-training": lambda: deltanet_case(run, name),
        "text-training": lambda: text_case(run, name, "delta"),
        "text-training-softmax": lambda: text_case(run, name, "softmax"),
        "length-chunkwise": lambda: length_case(run, name, "chunkwise"),
        "length-scan": lambda: length_case(run, name, "scan"),
    }
    others = Others()
    result = known[name]()
    floor, aim = CASES[name]
    return {"case": name, **result, "floor": floor, "aim": aim, "others_busy": round(others.load(), 3)}


def verdict(result: Json) -> str:
    """Whether a ratio is where it should be."""

    def holds(bound: str) -> bool:
        if not bound:
            return True
        sign, number = bound.split()
        ratio = result["ratio"]["median"]
        return ratio >= float(number) if sign == ">=" else ratio <= float(number)

    if not holds(result["floor"]):
        return "below the floor" if result["floor"].startswith(">") else "above the bound"
    if holds(result["aim"]):
        return "aim"
    return "floor" if result["floor"] else "below the aim"


def figure(value: Optional[float]) -> str:
    """Three figures."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def mebibytes(count: Optional[int]) -> str:
    """Bytes in MiB."""
    return "-" if count is None else f"{count / 2**20:.1f}"


def report(document: Json) -> str:
    """Markdown tables."""
    lines = [
        f"Executors of fwp-host and PyTorch {document['torch']}, float32, forward + backward, side by side: "
        f"{document['rounds']} rounds in turns, {document['threads']} threads, {document['processor']}.",
        "",
        "| case | shape | fwp-host | PyTorch | ratio (spread) | of medians | floor | aim | reached | peak MiB, fwp-host | PyTorch |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    flagged = False
    for r in document["cases"]:
        ratio, busy = r["ratio"], r["others_busy"] > BUSY_DURING
        flagged |= busy
        peak = r.get("peak_bytes", {}).get(r["best"])
        other = r.get("peer_peak_bytes", r.get("peak_bytes", {})).get(r["peer"])
        lines.append(
            f"| {r['case']}{'!' if busy else ''} | {r['shape']} | {r['best']} {figure(r['value'])} {r['unit']} "
            f"| {r['peer']} {figure(r['peer_value'])} {r['unit']} "
            f"| {figure(ratio['median'])} ({figure(ratio['lowest'])} to {figure(ratio['highest'])}) "
            f"| {figure(r.get('ratio_of_medians'))} | {r['floor']} | {r['aim']} | {verdict(r)} | {mebibytes(peak)} | {mebibytes(other)} |"
        )
    if flagged:
        lines += ["", "! others kept the machine busy meanwhile: measure again when it is idle."]
    for r in document["cases"]:
        if "bytes_per_token" in r:
            each = ", ".join(f"{n} bytes a token at {t}" for t, n in r["bytes_per_token"].items())
            lines += ["", f"{r['case']}: memory {each}."]
        if "forms" not in r:
            continue
        lines += ["", f"{r['case']}, {r['shape']}:", "", "| form | forward + backward, ms | peak, MiB |", "|---|---|---|"]
        lines += [f"| fwp-host {n} | {figure(f['ms'])} | {mebibytes(f['peak_bytes'])} |" for n, f in r["forms"].items()]
        lines += [f"| PyTorch {n} | {figure(f['ms'])} | {mebibytes(f['peak_bytes'])} |" for n, f in r["peer_forms"].items()]
    return "\n".join(lines)


def parse(arguments: List[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="compare-executors", description="The executors of fwp-host beside PyTorch, forward and backward, and whole training steps."
    )
    parser.add_argument("--only", metavar="CASE", action="append", choices=CASES, help=f"one of: {', '.join(CASES)}; may be repeated")
    parser.add_argument("--data", metavar="TEXT", help="the text file of the text-training cases, which are left out without it")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of both sides (default: 5; 1 with --quick)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of each side (default: 2)")
    parser.add_argument("--quick", action="store_true", help="short sequences and one round: whether it works, not how fast it is")
    parser.add_argument("--anyway", action="store_true", help="measure although the machine is busy")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument("--output", metavar="FILE", help="write the JSON document into a file as well")
    parser.add_argument("--host", help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    parsed.rounds = parsed.rounds if parsed.rounds is not None else 1 if parsed.quick else 5
    parsed.inner = 3 if parsed.quick else 7
    if parsed.rounds < 1 or parsed.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    if parsed.data and not os.path.isfile(parsed.data):
        parser.error(f"--data {parsed.data}: there is no such file")
    wanted = parsed.only or list(CASES)
    if not parsed.data and any(name.startswith("text-") for name in parsed.only or []):
        parser.error("the text-training cases need --data TEXT")
    parsed.cases = [name for name in wanted if parsed.data or not name.startswith("text-")]
    return parsed


def main() -> int:
    """Measures and prints."""
    arguments = parse(sys.argv[1:])
    if arguments.check:
        return 0
    state = machine_before("compare-executors", arguments.anyway)
    if state is None:
        return BUSY
    load_average, busy = state
    if busy > BUSY_BEFORE:
        print(
            f"compare-executors: others keep {busy:.2f} processors busy (load average {load_average:.2f}): measuring anyway",
            file=sys.stderr,
        )
    run, cases, failed = Run(arguments), [], []
    for name in arguments.cases:
        try:
            cases.append(measure(run, name))
        except (Failure, subprocess.SubprocessError) as failure:
            # The other cases are worth having.
            failed.append(name)
            print(f"compare-executors: {failure}", file=sys.stderr)
    document: Json = {
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "quick": arguments.quick,
        "wait_policy": run.environment.get("OMP_WAIT_POLICY", "the default of each"),
        "torch": importlib.metadata.version("torch"),
        "processor": processor(),
        "processors": os.cpu_count(),
        "load_average": load_average,
        "others_busy_before": round(busy, 3),
        "cases": cases,
        "failed": failed,
    }
    if arguments.output:
        pathlib.Path(arguments.output).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=2) if arguments.json else report(document))
    return FAILED if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
