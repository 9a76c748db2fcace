"""Update rules in PyTorch, in every form that people use: what the executors of fwp-host are compared with.

    python rules.py --case delta --time 2048 --dim 64 [--heads 4] [--rounds N] [--seconds S] [--threads N]
    python rules.py --case delta --time 2048 --dim 64 --peak NAME

A case is a rule (delta, gated-delta, gla, delta-rnn). Its forms take turns, round by round, after a round that
is not counted. Forward is from the inputs [batch, time, heads, dim] to the output; backward is from a gradient of
the output to the gradients of all inputs. First every form is compared with the loop on a short sequence.

Written here are the loops and the chunkwise forms with `solve_triangular`; the others are loaded from the wheels of
fla-core and transformers, the one function each, because their packages want a GPU or more packages when imported.

Prints one JSON object on stdout: for each form the medians forward_ms, backward_ms and total_ms, the least total,
and the number of rounds. With --peak: by how many bytes resident memory grew at most during one forward and
backward of that form; it is meant to run in a process of its own.
"""

import argparse
import ast
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any, Callable, Dict, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

Inputs = Dict[str, Tensor]
Form = Callable[[Inputs], Tensor]

CHUNKS = (32, 64, 128)
# With decays for every key feature a chunk is divided by its cumulated decays: long ones overflow sooner.
GLA_CHUNKS = (16, 32, 64)
TEMPERATURE = 16.0  # of the decays of gla, as the plugin has it


def heads_first(inputs: Inputs) -> List[Tensor]:
    """q, k, v [batch, heads, time, dim] and every other input with heads before time."""
    return [x.transpose(1, 2) for x in inputs.values()]


# ---- one step after another ----------------------------------------------------------------------


def delta_loop(inputs: Inputs) -> Tensor:
    """S_t = S_{t-1} + k_t beta_t (v_t - S_{t-1}^T k_t)^T, o_t = S_t^T q_t."""
    q, k, v, beta = heads_first(inputs)
    beta = beta.sigmoid().unsqueeze(-1)
    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for q_t, k_t, v_t, beta_t in zip(*(x.unbind(2) for x in (q, k, v, beta))):
        read = (k_t.unsqueeze(-2) @ state).squeeze(-2)
        state = state + k_t.unsqueeze(-1) * (beta_t * (v_t - read)).unsqueeze(-2)
        outputs.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1)


def gated_delta_loop(inputs: Inputs) -> Tensor:
    """As the delta rule, at the state decayed by alpha = sigmoid(signal)."""
    q, k, v, beta, alpha = heads_first(inputs)
    beta, alpha = beta.sigmoid().unsqueeze(-1), alpha.sigmoid()[..., None, None]
    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for q_t, k_t, v_t, beta_t, alpha_t in zip(*(x.unbind(2) for x in (q, k, v, beta, alpha))):
        state = alpha_t * state
        read = (k_t.unsqueeze(-2) @ state).squeeze(-2)
        state = state + k_t.unsqueeze(-1) * (beta_t * (v_t - read)).unsqueeze(-2)
        outputs.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1)


def gla_loop(inputs: Inputs) -> Tensor:
    """S_t = Diag(a_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, a = sigmoid(signal)^(1 / TEMPERATURE)."""
    q, k, v, a = heads_first(inputs)
    a = (F.logsigmoid(a) / TEMPERATURE).exp()
    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for q_t, k_t, v_t, a_t in zip(*(x.unbind(2) for x in (q, k, v, a))):
        state = a_t.unsqueeze(-1) * state + k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        outputs.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1)


def delta_rnn_loop(inputs: Inputs) -> Tensor:
    """Two matrices written by the delta rule; the second reads the softmax of the last output."""
    q, k, v, k_r, v_r, beta, beta_r = heads_first(inputs)
    k_r, beta, beta_r = k_r.softmax(-1), beta.sigmoid().unsqueeze(-1), beta_r.sigmoid().unsqueeze(-1)
    w = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    r = q.new_zeros(*q.shape[:2], v.shape[-1], v.shape[-1])
    y = q.new_zeros(*q.shape[:2], v.shape[-1])
    outputs = []
    for q_t, k_t, v_t, kr_t, vr_t, beta_t, br_t in zip(*(x.unbind(2) for x in (q, k, v, k_r, v_r, beta, beta_r))):
        w = w + k_t.unsqueeze(-1) * (beta_t * (v_t - (k_t.unsqueeze(-2) @ w).squeeze(-2))).unsqueeze(-2)
        r = r + kr_t.unsqueeze(-1) * (br_t * (vr_t - (kr_t.unsqueeze(-2) @ r).squeeze(-2))).unsqueeze(-2)
        y = (q_t.unsqueeze(-2) @ w + y.softmax(-1).unsqueeze(-2) @ r).squeeze(-2)
        outputs.append(y)
    return torch.stack(outputs, 1)


# ---- chunk by chunk ------------------------------------------------------------------------------


def chunked(x: Tensor, size: int) -> Tensor:
    """[batch, heads, time, ...] as [batch, heads, chunks, size, ...]."""
    return x.reshape(*x.shape[:2], -1, size, *x.shape[3:])


def delta_chunks(inputs: Inputs, size: int) -> Tensor:
    """The writes of a chunk solve (I + tril(beta K K^T, -1)) [U, W] = beta [V, K]; only the state walks from chunk to chunk."""
    q, k, v, beta = heads_first(inputs)
    q, k, v, beta = (chunked(x, size) for x in (q, k, v, beta.sigmoid().unsqueeze(-1)))
    scaled = beta * k
    # The diagonal is taken as ones.
    system = (scaled @ k.mT).tril(-1)
    solved = torch.linalg.solve_triangular(system, torch.cat([beta * v, scaled], -1), upper=False, unitriangular=True)
    u, w = solved.split([v.shape[-1], k.shape[-1]], -1)
    inner = (q @ k.mT).tril()
    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for q_c, k_c, u_c, w_c, inner_c in zip(*(x.unbind(2) for x in (q, k, u, w, inner))):
        writes = u_c - w_c @ state
        outputs.append(q_c @ state + inner_c @ writes)
        state = state + k_c.mT @ writes
    return torch.stack(outputs, 2).flatten(2, 3).transpose(1, 2)


def gated_delta_chunks(inputs: Inputs, size: int) -> Tensor:
    """As the delta rule with G_ij = prod of alpha from j + 1 to i, taken from differences of logarithms."""
    q, k, v, beta, alpha = heads_first(inputs)
    log = chunked(F.logsigmoid(alpha), size).cumsum(-1)
    q, k, v, beta = (chunked(x, size) for x in (q, k, v, beta.sigmoid().unsqueeze(-1)))
    # Above the diagonal the difference is positive and its exponential may overflow.
    between = (log.unsqueeze(-1) - log.unsqueeze(-2)).tril().exp().tril()
    since, until = log.exp().unsqueeze(-1), (log[..., -1:] - log).exp().unsqueeze(-1)
    system = ((beta * k @ k.mT) * between).tril(-1)
    right = torch.cat([beta * v, beta * since * k], -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    u, w = solved.split([v.shape[-1], k.shape[-1]], -1)
    inner = (q @ k.mT) * between
    whole = log[..., -1].exp()[..., None, None]
    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for q_c, k_c, u_c, w_c, inner_c, all_c in zip(*(x.unbind(2) for x in (since * q, until * k, u, w, inner, whole))):
        writes = u_c - w_c @ state
        outputs.append(q_c @ state + inner_c @ writes)
        state = all_c * state + k_c.mT @ writes
    return torch.stack(outputs, 2).flatten(2, 3).transpose(1, 2)


def gla_chunks(inputs: Inputs, size: int) -> Tensor:
    """Queries times, keys divided by their decays since the start of the chunk: fast, and exact while nothing overflows."""
    q, k, v, a = (chunked(x, size) for x in heads_first(inputs))
    log = (F.logsigmoid(a) / TEMPERATURE).cumsum(-2)
    last = log[..., -1:, :]
    since = q * log.exp()
    inner = (since @ (k * (-log).exp()).mT).tril()
    kept = k * (last - log).exp()
    within = inner @ v
    added = kept.mT @ v
    whole = last.exp().mT
    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for q_c, within_c, added_c, all_c in zip(*(x.unbind(2) for x in (since, within, added, whole))):
        outputs.append(q_c @ state + within_c)
        state = all_c * state + added_c
    return torch.stack(outputs, 2).flatten(2, 3).transpose(1, 2)


# ---- what others publish -------------------------------------------------------------------------


def package(name: str) -> pathlib.Path:
    """The folder of an installed package, which is not imported."""
    for folder in map(pathlib.Path, sys.path):
        if (folder / name / "__init__.py").is_file():
            return folder / name
    sys.exit(f"the package {name} is not installed: run scripts/python-env peers")


def fla(rule: str) -> Any:
    """The module of naive forms of one rule in fla-core, by its file: the package itself imports triton."""
    path = package("fla") / "ops" / rule / "naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_naive_{rule}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_transformers(name: str) -> Callable[..., Any]:
    """One function of transformers' Qwen3-Next, without its decorators, which look for kernels of a GPU."""
    path = package("transformers") / "models" / "qwen3_next" / "modeling_qwen3_next.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wanted = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in (name, "l2norm")]
    for function in wanted:
        function.decorator_list = []
    scope: Dict[str, Any] = {"torch": torch, "F": F, "is_torchdynamo_exporting": lambda: False}
    exec(compile(ast.Module(wanted, []), str(path), "exec"), scope)  # pylint: disable=exec-used
    return scope[name]


def fla_delta(size: int) -> Form:
    """fla-core's naive chunk form of the delta rule; it scales the query itself."""
    chunkwise = fla("delta_rule").delta_rule_chunkwise

    def form(inputs: Inputs) -> Tensor:
        q, k, v, beta = heads_first(inputs)
        return chunkwise(q * q.shape[-1] ** 0.5, k, v, beta.sigmoid(), chunk_size=size)[0].transpose(1, 2)

    return form


def fla_gated_delta(size: int) -> Form:
    """fla-core's naive chunk form of the gated delta rule."""
    chunkwise = fla("gated_delta_rule").naive_chunk_gated_delta_rule

    def form(inputs: Inputs) -> Tensor:
        q, k, v, beta, alpha = inputs.values()
        return chunkwise(q, k, v, F.logsigmoid(alpha), beta.sigmoid(), chunk_size=size, scale=1.0)[0]

    return form


def transformers_gated_delta(gated: bool) -> Form:
    """transformers' chunk form, with the decay 1 for the delta rule."""
    chunkwise = from_transformers("torch_chunk_gated_delta_rule")

    def form(inputs: Inputs) -> Tensor:
        q, k, v, beta = list(inputs.values())[:4]
        g = F.logsigmoid(inputs["alpha"]) if gated else torch.zeros_like(beta)
        return chunkwise(q * q.shape[-1] ** 0.5, k, v, g=g, beta=beta.sigmoid())[0]

    return form


# ---- cases ---------------------------------------------------------------------------------------


def forms(case: str) -> Dict[str, Form]:
    """The forms of a rule by name; the first is the loop, which judges the others."""
    if case == "delta":
        named: Dict[str, Form] = {"loop": delta_loop}
        named |= {f"chunk-{size}": lambda x, size=size: delta_chunks(x, size) for size in CHUNKS}
        return named | {"fla-naive-32": fla_delta(32), "transformers": transformers_gated_delta(False)}
    if case == "gated-delta":
        named = {"loop": gated_delta_loop}
        named |= {f"chunk-{size}": lambda x, size=size: gated_delta_chunks(x, size) for size in CHUNKS}
        return named | {"fla-naive-64": fla_gated_delta(64), "transformers": transformers_gated_delta(True)}
    if case == "gla":
        named = {"loop": gla_loop}
        return named | {f"chunk-{size}": lambda x, size=size: gla_chunks(x, size) for size in GLA_CHUNKS}
    return {"loop": delta_rnn_loop}


def draw(case: str, batch: int, steps: int, heads: int, dim: int) -> Inputs:
    """Keys and queries of length one, normal values, gates around means of their own, [batch, time, heads, ...]."""

    def unit() -> Tensor:
        return F.normalize(torch.randn(batch, steps, heads, dim), dim=-1)

    def gate(*size: int) -> Tensor:
        return torch.randn(batch, steps, heads, *size) + 2.0 * torch.randn(1, 1, heads, *size)

    inputs = {"q": unit(), "k": unit(), "v": torch.randn(batch, steps, heads, dim)}
    if case == "gla":
        inputs["a"] = gate(dim)
    elif case == "delta-rnn":
        inputs |= {"k_r": unit(), "v_r": torch.randn(batch, steps, heads, dim), "beta": gate(), "beta_r": gate()}
    else:
        inputs["beta"] = gate()
        if case == "gated-delta":
            inputs["alpha"] = gate()
    return {name: x.requires_grad_() for name, x in inputs.items()}


def once(form: Form, inputs: Inputs, gradient: Tensor) -> Tuple[float, float]:
    """Milliseconds forward and backward."""
    start = time.perf_counter()
    output = form(inputs)
    between = time.perf_counter()
    torch.autograd.grad(output, list(inputs.values()), gradient)
    end = time.perf_counter()
    return 1e3 * (between - start), 1e3 * (end - between)


def agree(case: str, named: Dict[str, Form], heads: int, dim: int) -> None:
    """Ends the program when a form computes something else than the loop, output or gradient."""
    inputs = draw(case, 1, 128, heads, dim)
    expected = None
    for name, form in named.items():
        output = form(inputs)
        gradient = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
        found = [output, *torch.autograd.grad(output, list(inputs.values()), gradient)]
        expected = expected or found
        for got, want, what in zip(found, expected, ["output", *inputs]):
            apart = ((got - want).norm() / want.norm().clamp_min(1e-9)).item()
            if not apart < 1e-3:
                sys.exit(f"{case}: {name} and the loop differ in {what}: relative difference {apart:.1e}")


def resident(key: str) -> int:
    """Bytes of resident memory now (VmRSS) or at most (VmHWM)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key))


def peak(form: Form, arguments: argparse.Namespace) -> int:
    """Growth of resident memory during one forward and backward, after one on a short sequence."""
    inputs = draw(arguments.case, arguments.batch, 128, arguments.heads, arguments.dim)
    once(form, inputs, torch.randn_like(inputs["v"]))
    inputs = draw(arguments.case, arguments.batch, arguments.time, arguments.heads, arguments.dim)
    gradient = torch.randn_like(inputs["v"])
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass  # then the highest point may lie in the past: too much rather than too little
    before = resident("VmRSS")
    once(form, inputs, gradient)
    return resident("VmHWM") - before


def measure(named: Dict[str, Form], arguments: argparse.Namespace) -> Dict[str, Any]:
    """All forms in turns."""
    inputs = draw(arguments.case, arguments.batch, arguments.time, arguments.heads, arguments.dim)
    gradient = torch.randn_like(inputs["v"])
    rounds: Dict[str, int] = {}
    for name, form in named.items():
        start = time.perf_counter()
        once(form, inputs, gradient)
        seconds = time.perf_counter() - start
        if seconds < arguments.seconds:
            seconds = sum(once(form, inputs, gradient)) / 1e3
        rounds[name] = max(1, min(arguments.rounds, int(arguments.seconds / seconds)))
    taken: Dict[str, List[Tuple[float, float]]] = {name: [] for name in named}
    names = list(named)
    for number in range(arguments.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if number < rounds[name]:
                taken[name].append(once(named[name], inputs, gradient))
    result = {}
    for name, pairs in taken.items():
        totals = [forward + backward for forward, backward in pairs]
        result[name] = {
            "forward_ms": statistics.median(f for f, _ in pairs),
            "backward_ms": statistics.median(b for _, b in pairs),
            "total_ms": statistics.median(totals),
            "least_ms": min(totals),
            "rounds": len(pairs),
        }
    return result


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=("delta", "gated-delta", "gla", "delta-rnn"), required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--time", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of rounds for each form")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--forms", help="only these, divided by commas")
    parser.add_argument("--peak", metavar="NAME", help="only the memory of this form")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(arguments.threads)
    named = forms(arguments.case)
    if arguments.forms or arguments.peak:
        wanted = (arguments.forms or arguments.peak).split(",")
        unknown = [name for name in wanted if name not in named]
        if unknown:
            parser.error(f"there is no form {unknown[0]}; there are: {', '.join(named)}")
        chosen = {name: form for name, form in named.items() if name in wanted}
    else:
        chosen = named
    if arguments.peak:
        print(peak(named[arguments.peak], arguments))
        return
    agree(arguments.case, {"loop": named["loop"], **chosen}, arguments.heads, arguments.dim)
    print(json.dumps(measure(chosen, arguments)))


if __name__ == "__main__":
    main()
