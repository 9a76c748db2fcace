"""Runs fwp-host and char_lm.py in turns and prints their training speed side by side.

Started by scripts/compare-text with the Python that has torch, and with --host. Both sides get the same
text, steps and number of threads, and each waits for its threads as it does by default unless
OMP_WAIT_POLICY is set. Their speed is taken in the same way: wall time from the end of step WARM_UP to
the end of the last one. Which side goes first changes every round.

How busy others kept the machine is the busy time of all processors less that of our own processes.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, Optional, Tuple

HERE = pathlib.Path(__file__).resolve().parent
ZOO = HERE.parent.parent / "zoo"
PEER = HERE / "char_lm.py"

# Softmax attention is no fast-weight rule: only the peer has it.
RECIPES: Dict[str, Optional[str]] = {"delta": "deltanet-text", "additive": "additive-text", "softmax": None}
TOKENS = 12 * 64  # characters a step, as recipes and peer have it
WARM_UP = 20  # steps before speed is measured, in the peer as well
LEAST_STEPS = 100  # the recipe's warm-up of the learning rate

# Processors that others may keep busy: above it, nothing is measured, or the number is flagged.
BUSY_BEFORE = 0.25
BUSY_DURING = 0.1

FAILED, BUSY = 1, 3

Json = Dict[str, Any]


class Failure(Exception):
    """What went wrong, for a person."""


def busy_seconds() -> float:
    """Processor time that the whole machine has spent working, and waiting for its hypervisor."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, file.readline().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor time of this process and those it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Others:
    """How many processors others keep busy, from its creation on."""

    def __init__(self) -> None:
        self.start = (time.monotonic(), busy_seconds() - own_seconds())

    def load(self) -> float:
        """The mean so far."""
        began, busy = self.start
        return max(0.0, busy_seconds() - own_seconds() - busy) / (time.monotonic() - began)


def machine_before(program: str, anyway: bool) -> Optional[Tuple[float, float]]:
    """The load average and what others keep busy, watched for a while; nothing, and why on stderr, where that is too much."""
    load_average, others = os.getloadavg()[0], Others()
    time.sleep(2)
    busy = others.load()
    if busy > BUSY_BEFORE and not anyway:
        print(
            f"{program}: others keep {busy:.2f} processors busy (load average {load_average:.2f}): "
            "wait until the machine is idle, or measure --anyway",
            file=sys.stderr,
        )
        return None
    return load_average, busy


def output_of(command: List[str], environment: Dict[str, str]) -> str:
    """What a command prints on stdout."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"'{' '.join(command)}' ended with exit code {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def run_host(arguments: argparse.Namespace, recipe: str, seed: int, environment: Dict[str, str]) -> Json:
    """Trains with fwp-host and reads its record."""
    with tempfile.TemporaryDirectory(prefix="fwp-compare-") as folder:
        run = pathlib.Path(folder, "run")
        command = [arguments.host, "train", "--recipe", str(ZOO / recipe), "--data", arguments.data]
        command += ["--steps", str(arguments.steps), "--seed", str(seed), "--device", "cpu", "--run-dir", str(run)]
        command += ["--progress", "none", "--set", "eval.every=0", "--set", "checkpoint.every=0"]
        if not arguments.evaluate:
            command += ["--set", "task.eval_windows=1"]
        output_of(command, environment)
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["step"] >= WARM_UP and "train/loss" in r]
    done, seconds = steps[-1]["step"] - steps[0]["step"], steps[-1]["time"] - steps[0]["time"]
    result = {"tokens_per_second": done * TOKENS / seconds, "train_loss": steps[-1]["train/loss"]}
    if arguments.evaluate:
        result["eval_loss"] = [r["eval/loss"] for r in records if "eval/loss" in r][-1]
    return result


def run_peer(arguments: argparse.Namespace, seed: int, environment: Dict[str, str]) -> Json:
    """Trains in plain PyTorch."""
    command = [sys.executable, str(PEER), "--data", arguments.data, "--rule", arguments.rule]
    command += ["--steps", str(arguments.steps), "--seed", str(seed)]
    if arguments.evaluate:
        command.append("--evaluate")
    return json.loads(output_of(command, environment))


def measure(arguments: argparse.Namespace, environment: Dict[str, str]) -> List[Json]:
    """One entry for each round: seed and the result of each side."""
    recipe = RECIPES[arguments.rule]
    sides = ["pytorch"] if recipe is None else ["fwp-host", "pytorch"]
    rounds = []
    for number in range(1, arguments.rounds + 1):
        entry: Json = {"seed": number}
        for side in sides if number % 2 else reversed(sides):
            print(f"round {number} of {arguments.rounds}: {side}", file=sys.stderr)
            others = Others()
            if side == "pytorch":
                entry[side] = run_peer(arguments, number, environment)
            else:
                assert recipe is not None
                entry[side] = run_host(arguments, recipe, number, environment)
            entry[side]["others_busy"] = round(others.load(), 3)
        if len(sides) == 2:
            entry["ratio"] = entry["fwp-host"]["tokens_per_second"] / entry["pytorch"]["tokens_per_second"]
        rounds.append(entry)
    return rounds


def spread(values: List[float]) -> Json:
    """Median and extremes."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def summary(rounds: List[Json]) -> Json:
    """Speed and losses of each side over all rounds, and their ratio."""
    result: Json = {}
    for side in ("fwp-host", "pytorch"):
        runs = [r[side] for r in rounds if side in r]
        if not runs:
            continue
        result[side] = {
            "tokens_per_second": spread([r["tokens_per_second"] for r in runs]),
            "others_busy": max(r["others_busy"] for r in runs),
        }
        losses = [r["eval_loss"] for r in runs if "eval_loss" in r]
        if losses:
            result[side]["eval_loss"] = spread(losses) | {"mean": statistics.fmean(losses)}
    ratios = [r["ratio"] for r in rounds if "ratio" in r]
    if ratios:
        result["ratio"] = spread(ratios)
    return result


def processor() -> str:
    """The name of the processor."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        return next(names, "unknown processor")


def table(report: Json) -> str:
    """The report for a person."""
    recipe, total = RECIPES[report["rule"]], report["summary"]
    title = f"zoo/{recipe} and the same model in PyTorch" if recipe else "softmax attention in PyTorch"
    lines = [
        f"{title} {report['torch']}: training speed",
        f"{report['rounds_asked']} rounds in turns, {report['steps']} steps of {TOKENS} tokens each; "
        f"{report['threads']} threads, OMP_WAIT_POLICY={report['wait_policy']}",
        f"{report['processor']}, {report['processors']} processors, load average {report['load_average']:.2f} at the start",
        "",
        f"{'':10}{'tokens/s':>10}{'lowest':>10}{'highest':>10}{'others busy':>13}" + ("   eval/loss" if report["evaluate"] else ""),
    ]
    flagged = False
    for side in (s for s in ("fwp-host", "pytorch") if s in total):
        speed, busy = total[side]["tokens_per_second"], total[side]["others_busy"]
        flagged |= busy > BUSY_DURING
        line = f"{side:10}{speed['median']:10.0f}{speed['lowest']:10.0f}{speed['highest']:10.0f}{busy:12.2f}"
        line += "!" if busy > BUSY_DURING else " "
        if report["evaluate"]:
            line += f"   {total[side]['eval_loss']['mean']:.4f} (mean)"
        lines.append(line.rstrip())
    if "ratio" in total:
        ratio = total["ratio"]
        lines.append(f"{'ratio':10}{ratio['median']:10.3f}{ratio['lowest']:10.3f}{ratio['highest']:10.3f}")
    if flagged:
        lines += ["", "! others kept the machine busy (mean number of processors): measure again when it is idle"]
    return "\n".join(lines)


def parse(arguments: List[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="compare-text", description="Training speed of zoo/deltanet-text beside the same model in plain PyTorch."
    )
    parser.add_argument("--data", required=True, metavar="TEXT", help="the text file, such as tinyshakespeare")
    parser.add_argument("--rule", choices=RECIPES, default="delta", help="default: delta; softmax runs the peer alone")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each side, with seeds 1 to N (default: 3)")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="steps of each run (default: 200)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of each side (default: 2)")
    parser.add_argument("--evaluate", action="store_true", help="also compare losses on the whole validation part")
    parser.add_argument("--anyway", action="store_true", help="measure although the machine is busy")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--host", help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if not os.path.isfile(parsed.data):
        parser.error(f"--data {parsed.data}: there is no such file")
    if parsed.steps < LEAST_STEPS:
        parser.error(f"--steps must be at least {LEAST_STEPS}, the recipe's warm-up of the learning rate")
    if parsed.rounds < 1 or parsed.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    return parsed


def main() -> int:
    """Measures and prints."""
    arguments = parse(sys.argv[1:])
    if arguments.check:
        return 0
    state = machine_before("compare-text", arguments.anyway)
    if state is None:
        return BUSY
    load_average, busy = state
    threads = str(arguments.threads)
    wait_policy = os.environ.get("OMP_WAIT_POLICY", "the default of each")
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": "",
    }
    try:
        rounds = measure(arguments, environment)
    except Failure as failure:
        print(f"compare-text: {failure}", file=sys.stderr)
        return FAILED
    report: Json = {
        "rule": arguments.rule,
        "rounds_asked": arguments.rounds,
        "steps": arguments.steps,
        "threads": arguments.threads,
        "wait_policy": wait_policy,
        "evaluate": arguments.evaluate,
        "torch": importlib.metadata.version("torch"),
        "processor": processor(),
        "processors": os.cpu_count(),
        "load_average": load_average,
        "others_busy_before": round(busy, 3),
        "rounds": rounds,
        "summary": summary(rounds),
    }
    print(json.dumps(report, indent=2) if arguments.json else table(report))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
