"""Update rules that have no chunk form, as plain eager loops in PyTorch: what the executors of fwp-host spare.

    python loops.py --rule fwm [--batch B] [--heads H] [--time T] [--dim D] [--threads N] [--seconds S]
    python loops.py --rule fwm --host FWP_HOST ...

One loop a rule, one step after another for all sequences and heads at once, gradients by autograd; whatever depends
on the inputs alone is computed before the loop for all steps. Inputs are [batch, time, heads, ...], parameters
[heads, ...] are named `param.NAME`, as `fwp-host apply` has them; states are [batch, heads, values, keys].

With --host, a loop is first compared with the plugin of its name, output and all gradients, in float64.

Prints one JSON object: `ms`, the median of forward and backward over `time` steps, and the number of rounds. A loop
that would take longer than --seconds is timed on a shorter sequence, and `time` says so.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rules import delta_rnn_loop, once

Inputs = Dict[str, Tensor]
Shapes = Dict[str, Tuple[str, Tuple[int, ...]]]

PROBE = 128  # steps that tell how long a loop takes
BATCH = 16  # tokens for which ttt holds its weights, as the plugin has it
ITERATIONS = 30  # of mesa's solver, as the plugin has it


def outer(column: Tensor, row: Tensor) -> Tensor:
    """[.., m] and [.., n] to [.., m, n]."""
    return column.unsqueeze(-1) * row.unsqueeze(-2)


def read(w: Tensor, x: Tensor) -> Tensor:
    """[.., m, n] times [.., n]."""
    return (w @ x.unsqueeze(-1)).squeeze(-1)


def read_t(w: Tensor, x: Tensor) -> Tensor:
    """The transpose of [.., m, n] times [.., m]."""
    return (x.unsqueeze(-2) @ w).squeeze(-2)


def delta(w: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """w + beta (v - w k) k^T."""
    return w + outer(beta.unsqueeze(-1) * (v - read(w, k)), k)


def zeros(x: Inputs, rows: str = "v", columns: str = "k") -> Tensor:
    """A state for outer products of two inputs."""
    batch, _, heads, size = x[columns].shape
    return x[columns].new_zeros(batch, heads, x[rows].shape[-1], size)


def walk(step: Callable[..., Tuple[Any, Tensor]], state: Any, *inputs: Tensor) -> Tensor:
    """The outputs of step(state, *inputs of a step) -> (state, output), [batch, time, heads, ...]."""
    outputs = []
    for row in zip(*(x.unbind(1) for x in inputs)):
        state, output = step(state, *row)
        outputs.append(output)
    return torch.stack(outputs, 1)


def fwp_1991(x: Inputs) -> Tensor:
    """w = tanh(w + v k^T), o = w q."""

    def step(w: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tuple[Tensor, Tensor]:
        w = (w + outer(v, k)).tanh()
        return w, read(w, q)

    return walk(step, zeros(x), x["q"], x["k"], x["v"])


def fwm(x: Inputs) -> Tensor:
    """The delta rule, then w / max(1, |w|); what is read is normalised."""

    def step(w: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tuple[Tensor, Tensor]:
        w = delta(w, k, v, beta)
        w = w / w.square().sum((-2, -1), keepdim=True).clamp_min(1.0).sqrt()
        return w, read(w, q)

    o = walk(step, zeros(x), x["q"], x["k"], x["v"], x["beta"].sigmoid())
    return F.layer_norm(o, o.shape[-1:], eps=1e-5)


def longhorn(x: Inputs) -> Tensor:
    """w + (e * (v - w k)) k^T, e = beta / (1 + beta |k|^2) for every element of a value."""
    beta = x["beta"].sigmoid()
    e = beta / (1 + beta * x["k"].square().sum(-1, keepdim=True))

    def step(w: Tensor, q: Tensor, k: Tensor, v: Tensor, e_t: Tensor) -> Tuple[Tensor, Tensor]:
        w = w + outer(e_t * (v - read(w, k)), k)
        return w, read(w, q)

    return walk(step, zeros(x), x["q"], x["k"], x["v"], e)


def delta_lstm(x: Inputs) -> Tensor:
    """An LSTM of three gates, each with a matrix for the input and one for the last output."""
    names = [f"{n}_{g}" for g in "iuo" for n in ("q", "k", "v", "kr", "vr", "beta", "betar")]
    made = [x[n].softmax(-1) if n.startswith("kr") else x[n].sigmoid() if n.startswith("beta") else x[n] for n in names]
    first = zeros(x, "v_i", "k_i")
    square = zeros(x, "v_i", "kr_i")
    blank = first[..., 0]

    def step(state: Any, *row: Tensor) -> Tuple[Any, Tensor]:
        ws, rs, h, c = state
        last, read_by = h.softmax(-1), []
        for gate in range(3):
            q, k, v, kr, vr, beta, betar = row[7 * gate : 7 * gate + 7]
            ws = ws[:gate] + (delta(ws[gate], k, v, beta),) + ws[gate + 1 :]
            rs = rs[:gate] + (delta(rs[gate], kr, vr, betar),) + rs[gate + 1 :]
            read_by.append(read(ws[gate], q) + read(rs[gate], last))
        i = read_by[0].sigmoid()
        c = i * read_by[1] + (1 - i) * c
        h = read_by[2].sigmoid() * c
        return (ws, rs, h, c), h

    return walk(step, ((first,) * 3, (square,) * 3, blank, blank), *made)


def srwm(x: Inputs) -> Tensor:
    """One matrix makes output, query, key and four rates, and changes itself by them."""
    n = x["x"].shape[-1]
    groups = torch.tensor([n, n, n, 4])

    def step(w: Tensor, value: Tensor) -> Tuple[Tensor, Tensor]:
        y, q, k, rates = read(w, value).split([n, n, n, 4], -1)
        q, k = q.softmax(-1), k.softmax(-1)
        b = rates.sigmoid().repeat_interleave(groups, -1, output_size=3 * n + 4)
        return w + outer(b * (read(w, q) - read(w, k)), k), y

    w = x["param.w_0"].expand(x["x"].shape[0], -1, -1, -1)
    return walk(step, w, x["x"].softmax(-1))


def normalised(z: Tensor) -> Tuple[Tensor, Tensor]:
    """(z - mean) / deviation, and the deviation."""
    deviation = (z.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    return (z - z.mean(-1, keepdim=True)) / deviation, deviation


def ttt(x: Inputs, names: List[str], model: Callable[..., Any], slopes: Callable[..., List[Tensor]]) -> Tensor:
    """Gradients of r |k + gain LN(model(k)) + bias - v|^2 at the weights that a batch began with; read at the new ones."""
    gain, bias = x["param.gain"], x["param.bias"]
    start = [x[f"param.{n}_0"] for n in names]
    rates = x["eta"].sigmoid().unsqueeze(-1) / x["k"].shape[-1]

    def step(state: Any, q: Tensor, k: Tensor, v: Tensor, rate: Tensor) -> Tuple[Any, Tensor]:
        held, sums, at = state
        z, inner = model(k, held)
        unit, deviation = normalised(z)
        g = 2 * rate * (k + gain * unit + bias - v) * gain
        g = (g - g.mean(-1, keepdim=True) - unit * (g * unit).mean(-1, keepdim=True)) / deviation
        sums = [s + d for s, d in zip(sums, slopes(g, k, held, inner))]
        now = [w - s for w, s in zip(held, sums)]
        o = q + gain * normalised(model(q, now)[0])[0] + bias
        if (at + 1) % BATCH == 0:
            held, sums = now, [torch.zeros_like(s) for s in sums]
        return (held, sums, at + 1), o

    return walk(step, (start, [torch.zeros_like(w) for w in start], 0), x["q"], x["k"], x["v"], rates)


def ttt_linear(x: Inputs) -> Tensor:
    """The inner model is W x + b."""

    def model(y: Tensor, w: List[Tensor]) -> Any:
        return read(w[0], y) + w[1], None

    def slopes(g: Tensor, k: Tensor, _w: List[Tensor], _inner: Any) -> List[Tensor]:
        return [outer(g, k), g]

    return ttt(x, ["w", "b"], model, slopes)


def ttt_mlp(x: Inputs) -> Tensor:
    """The inner model is W2 gelu(W1 x + b1) + b2."""

    def model(y: Tensor, w: List[Tensor]) -> Any:
        a = read(w[0], y) + w[1]
        h = F.gelu(a)
        return read(w[2], h) + w[3], (a, h)

    def slopes(g: Tensor, k: Tensor, w: List[Tensor], inner: Any) -> List[Tensor]:
        a, h = inner
        slope = 0.5 * (1 + torch.erf(a / math.sqrt(2))) + a * torch.exp(-a.square() / 2) / math.sqrt(2 * math.pi)
        back = read_t(w[2], g) * slope
        return [outer(back, k), back, outer(g, h), g]

    return ttt(x, ["w1", "b1", "w2", "b2"], model, slopes)


def titans(x: Inputs) -> Tensor:
    """A matrix that learns by gradient descent with momentum and forgets."""
    kept, eta, theta = (y[..., None, None] for y in (1 - x["alpha"].sigmoid(), x["eta"].sigmoid(), x["theta"].sigmoid()))

    def step(state: Any, q: Tensor, k: Tensor, v: Tensor, a: Tensor, e: Tensor, t: Tensor) -> Tuple[Any, Tensor]:
        w, u = state
        u = e * u - t * outer(2 * (read(w, k) - v), k)
        w = a * w + u
        return (w, u), read(w, q)

    return walk(step, (x["param.w_0"], zeros(x)), x["q"], x["k"], x["v"], kept, eta, theta)


def titans_mlp(x: Inputs) -> Tensor:
    """The same with the memory W2 silu(W1 x); with a rate of 1 it leaves all bounds."""
    rates = (1 - x["alpha"].sigmoid(), x["eta"].sigmoid(), 0.01 * x["theta"].sigmoid())
    kept, eta, theta = (y[..., None, None] for y in rates)

    def step(state: Any, q: Tensor, k: Tensor, v: Tensor, a: Tensor, e: Tensor, t: Tensor) -> Tuple[Any, Tensor]:
        w1, w2, u1, u2 = state
        inner = read(w1, k)
        gate = inner.sigmoid()
        h = inner * gate
        g = 2 * (read(w2, h) - v)
        back = read_t(w2, g) * gate * (1 + inner * (1 - gate))
        u1, u2 = e * u1 - t * outer(back, k), e * u2 - t * outer(g, h)
        w1, w2 = a * w1 + u1, a * w2 + u2
        return (w1, w2, u1, u2), read(w2, F.silu(read(w1, q)))

    starts = [x["param.w1_0"], x["param.w2_0"]]
    return walk(step, (*starts, *map(torch.zeros_like, starts)), x["q"], x["k"], x["v"], kept, eta, theta)


def log_linear(x: Inputs) -> Tensor:
    """A matrix for every binary digit of the length; one that is empty is left out."""
    weights = F.softplus(x["lambda"])
    levels: List[Optional[Tensor]] = [None] * weights.shape[-1]

    def step(state: Any, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, a: Tensor) -> Tuple[Any, Tensor]:
        at, levels = state
        into = (at & -at).bit_length()
        flows = [s for s in levels[: into + 1] if s is not None]
        levels = [None] * into + [sum(flows[1:], flows[0]) if flows else None] + levels[into + 1 :]
        levels = [s if s is None else a * s for s in levels]
        levels[0] = outer(v, k)
        reads = [weight[..., j, None] * read(s, q) for j, s in enumerate(levels) if s is not None]
        return (at + 1, levels), sum(reads[1:], reads[0])

    alpha = x["alpha"].sigmoid()[..., None, None]
    return walk(step, (0, levels), x["q"], x["k"], x["v"], weights, alpha)


class Solve(torch.autograd.Function):
    """A^-1 b by conjugate gradients; the gradient solves once more instead of going back through the iterations."""

    @staticmethod
    def run(a: Tensor, b: Tensor) -> Tensor:
        """The iterations."""
        x, r, p = torch.zeros_like(b), b, b
        square = r.square().sum(-1, keepdim=True)
        for _ in range(ITERATIONS):
            ap = read(a, p)
            # After the solution is found, everything stays 0.
            size = square / (p * ap).sum(-1, keepdim=True).clamp_min(1e-300 if b.dtype == torch.float64 else 1e-37)
            x, r = x + size * p, r - size * ap
            old, square = square, r.square().sum(-1, keepdim=True)
            p = r + square / old.clamp_min(1e-300 if b.dtype == torch.float64 else 1e-37) * p
        return x

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:  # pylint: disable=arguments-differ
        """The solution."""
        x = Solve.run(a, b)
        ctx.save_for_backward(a, x)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tuple[Tensor, Tensor]:  # pylint: disable=arguments-differ
        """Of a symmetric matrix."""
        a, x = ctx.saved_tensors
        y = Solve.run(a, g)
        return -outer(y, x), y


def mesa(x: Inputs) -> Tensor:
    """G (H + Diag(l))^-1 q of two decayed sums."""
    ridge = torch.diag_embed(F.softplus(x["param.lambda"]) + 0.25)
    gamma, beta = (y[..., None, None] for y in (x["gamma"].sigmoid(), x["beta"].sigmoid()))

    def step(state: Any, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, size: Tensor) -> Tuple[Any, Tensor]:
        g, h = state
        g, h = kept * g + size * outer(v, k), kept * h + size * outer(k, k)
        return (g, h), read(g, Solve.apply(h + ridge, q))

    return walk(step, (zeros(x), zeros(x, "k", "k")), x["q"], x["k"], x["v"], gamma, beta)


class Case(NamedTuple):
    """A rule: its loop, and what is drawn for it: a kind and a shape a head for every input and parameter."""

    loop: Callable[[Inputs], Tensor]
    shapes: Callable[[int, int], Shapes]


def qkv(d: int) -> Shapes:
    """What most rules take."""
    return {"q": ("unit", (d,)), "k": ("unit", (d,)), "v": ("value", (d,))}


def gates(*names: str) -> Shapes:
    """Scalar signals."""
    return {name: ("gate", ()) for name in names}


def of_delta_lstm(d: int) -> Shapes:
    """Seven inputs a gate."""
    kinds = {"q": "unit", "k": "unit", "v": "value", "kr": "value", "vr": "value"}
    return {f"{n}_{g}": (kind, (d,)) for g in "iuo" for n, kind in kinds.items()} | gates(
        *(f"{n}_{g}" for g in "iuo" for n in ("beta", "betar"))
    )


def of_delta_rnn(d: int) -> Shapes:
    """In the order in which the loop takes them."""
    return qkv(d) | {"k_r": ("value", (d,)), "v_r": ("value", (d,))} | gates("beta", "beta_r")


def of_ttt(d: int, weights: Dict[str, Tuple[int, ...]]) -> Shapes:
    """Inputs, the layer norm and trained initial weights."""
    norm: Shapes = {"param.gain": ("ones", (d,)), "param.bias": ("small", (d,))}
    return qkv(d) | gates("eta") | norm | {f"param.{n}_0": ("small", shape) for n, shape in weights.items()}


# By the rule's name and the settings that differ from the defaults. d: size of keys and values; t: steps.
CASES: Dict[str, Case] = {
    "fwp-1991": Case(fwp_1991, lambda d, t: qkv(d)),
    "fwm": Case(fwm, lambda d, t: qkv(d) | gates("beta")),
    "longhorn": Case(longhorn, lambda d, t: {**qkv(d), "beta": ("gate", (d,))}),
    "delta-rnn": Case(delta_rnn_loop, lambda d, t: of_delta_rnn(d)),
    "delta-lstm": Case(delta_lstm, lambda d, t: of_delta_lstm(d)),
    "srwm": Case(srwm, lambda d, t: {"x": ("value", (d,)), "param.w_0": ("small", (3 * d + 4, d))}),
    "ttt-linear": Case(ttt_linear, lambda d, t: of_ttt(d, {"w": (d, d), "b": (d,)})),
    "ttt-mlp": Case(ttt_mlp, lambda d, t: of_ttt(d, {"w1": (4 * d, d), "b1": (4 * d,), "w2": (d, 4 * d), "b2": (d,)})),
    "titans": Case(titans, lambda d, t: {**qkv(d), **gates("alpha", "eta", "theta"), "param.w_0": ("small", (d, d))}),
    "titans depth=2 rate=0.01": Case(
        titans_mlp,
        lambda d, t: {
            **(qkv(d) | gates("alpha", "eta", "theta")),
            "param.w1_0": ("small", (4 * d, d)),
            "param.w2_0": ("small", (d, 4 * d)),
        },
    ),
    "log-linear": Case(
        log_linear, lambda d, t: {**qkv(d), "lambda": ("gate", ((t - 1).bit_length() + 1,)), "alpha": ("gate", ())}
    ),
    "mesa": Case(mesa, lambda d, t: {**qkv(d), **gates("gamma", "beta"), "param.lambda": ("small", (d,))}),
}


def draw(case: Case, batch: int, steps: int, heads: int, dim: int, dtype: torch.dtype) -> Inputs:
    """Keys and queries of length one, normal values, gates around means of their own, small or unit parameters."""
    made = {}
    for name, (kind, shape) in case.shapes(dim, steps).items():
        size = (heads, *shape) if name.startswith("param.") else (batch, steps, heads, *shape)
        x = torch.randn(size, dtype=torch.float64)
        if kind == "unit":
            x = F.normalize(x, dim=-1)
        elif kind == "gate":
            x = x + 2.0 * torch.randn((1, 1, heads, *shape), dtype=torch.float64)
        elif kind in ("small", "ones"):
            x = 0.1 * x + (1.0 if kind == "ones" else 0.0)
        made[name] = x.to(dtype).requires_grad_()
    return made


def save(path: pathlib.Path, tensors: Inputs) -> None:
    """Writes float64 tensors as safetensors: the length of a JSON header, the header, the elements."""
    header, body = {}, b""
    for name, t in tensors.items():
        elements = t.detach().contiguous().numpy().tobytes()
        header[name] = {"dtype": "F64", "shape": list(t.shape), "data_offsets": [len(body), len(body) + len(elements)]}
        body += elements
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def load(path: pathlib.Path) -> Inputs:
    """Reads float64 tensors."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    return {
        name: torch.frombuffer(bytearray(data[end + a : end + b]), dtype=torch.float64).reshape(entry["shape"])
        if b > a
        else torch.zeros(entry["shape"], dtype=torch.float64)
        for name, entry in header.items()
        for a, b in [entry["data_offsets"]]
    }


def agree(name: str, case: Case, host: str) -> None:
    """Ends the program where the loop computes something else than the plugin."""
    inputs = draw(case, 2, 20, 2, 8, torch.float64)
    o = case.loop(inputs)
    gradient = torch.randn_like(o)
    wanted = {"o": o.detach()}
    found = torch.autograd.grad(o, list(inputs.values()), gradient, allow_unused=True)
    wanted |= {f"grad.{n}": torch.zeros_like(inputs[n]) if g is None else g for n, g in zip(inputs, found)}
    rule, *settings = name.split(" ")
    with tempfile.TemporaryDirectory(prefix="fwp-loops-") as folder:
        given, made = pathlib.Path(folder, "in.safetensors"), pathlib.Path(folder, "out.safetensors")
        save(given, inputs | {"grad.o": gradient})
        command = [host, "apply", "--rule", rule, "--input", str(given), "--output", str(made), "--dtype", "float64"]
        command += ["--grad", "--exec", "reference", "--device", "cpu", "--key-dim", "8", "--value-dim", "8"]
        for setting in settings:
            command += ["--set", setting]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{name}: the loop cannot be compared with the plugin: {done.stderr.strip()}")
        got = load(made)
    for what, want in wanted.items():
        apart = ((got[what] - want).norm() / want.norm().clamp_min(1e-12)).item()
        if not apart < 1e-7:
            sys.exit(f"{name}: the loop and the plugin differ in {what}: relative difference {apart:.1e}")


def measure(case: Case, arguments: argparse.Namespace) -> Dict[str, Any]:
    """The median of some rounds, on a sequence that is short enough."""

    def prepared(steps: int) -> Callable[[], float]:
        inputs = draw(case, arguments.batch, steps, arguments.heads, arguments.dim, torch.float32)
        gradient = torch.randn(arguments.batch, steps, arguments.heads, arguments.dim)
        return lambda: sum(once(case.loop, inputs, gradient))

    steps = min(PROBE, arguments.time)
    probe = prepared(steps)
    probe()
    a_step = probe() / steps
    steps = arguments.time
    while steps > PROBE and a_step * steps > 1e3 * arguments.seconds:
        steps //= 2
    run = prepared(steps)
    rounds = max(1, min(arguments.rounds, int(1e3 * arguments.seconds / (a_step * steps))))
    return {"ms": statistics.median(run() for _ in range(rounds)), "time": steps, "rounds": rounds}


def main() -> None:
    """Compares, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rule", choices=CASES, required=True)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--time", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--host", help="the fwp-host whose plugin the loop is compared with")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(arguments.threads)
    if arguments.host:
        agree(arguments.rule, CASES[arguments.rule], arguments.host)
    print(json.dumps(measure(CASES[arguments.rule], arguments)))


if __name__ == "__main__":
    main()
