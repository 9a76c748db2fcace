"""The model of zoo/deltanet-text in plain PyTorch: what fwp-host is compared with.

    python char_lm.py --data TEXT [--rule delta|additive|softmax] [--steps N] [--seed N] [--evaluate]

A character-level language model of four blocks, 0.68 M parameters with 65 symbols. A block is

    x = x + W_o norm_per_head(mix(q, k, v, beta))     of norm(x)
    x = x + W_down (silu(W_gate y) * W_up y)          y = norm(x)

where mix is the delta rule in its chunkwise form, the additive rule as masked attention without softmax,
or softmax attention (then with trained positions and without convolution and head norm, as usual).
Initial values, optimiser, schedule and evaluation are those of the recipe; only the random draws differ.

Prints one JSON object on stdout: parameters, tokens_per_second, train_loss and, with --evaluate, eval_loss
over the whole validation part in nats a character. Speed is wall time from the end of step WARM_UP to
the end of the last one: batches, forward, backward and optimiser.
"""

import argparse
import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LAYERS, HEADS, HIDDEN = 128, 4, 4, 256
HEAD = WIDTH // HEADS
CONVOLUTION = 4  # steps it sees
CHUNK = 64  # steps the delta rule takes at once
CONTEXT, BATCH, EVAL_BATCH = 64, 12, 32
PEAK_RATE, RATE_WARM_UP, LAST_RATE = 1e-3, 100, 0.1
EPS = 1e-6

# Steps before speed is measured: memory and threads settle. A multiple of LOG_EVERY.
WARM_UP = 20
# Steps between two looks at the loss, which fwp-host takes as well.
LOG_EVERY = 10


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T and o_t = S_t^T q_t, chunk by chunk.

    Within a chunk the writes U solve (I + tril(beta K K^T, -1)) U = beta (V - K S), with S the state
    before it. q, k, v [batch, heads, time, size], beta [batch, heads, time, 1], time a multiple of CHUNK
    or less.
    """
    size = min(CHUNK, q.shape[2])
    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for q, k, v, beta in zip(*(x.split(size, dim=2) for x in (q, k, v, beta))):
        system = (beta * (k @ k.mT)).tril(-1)
        right = beta * (v - k @ state)
        # The diagonal is taken as ones.
        writes = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        outputs.append(q @ state + (q @ k.mT).tril() @ writes)
        state = state + k.mT @ writes
    return torch.cat(outputs, dim=2)


def unit(x: Tensor) -> Tensor:
    """Length one, as the recipe's feature map has it."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A matrix without bias."""
    return nn.Linear(inputs, outputs, bias=False)


class ShortConvolution(nn.Conv1d):
    """A filter for each feature that sees this step and the ones before it, then SiLU."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH, CONVOLUTION, groups=WIDTH, padding=CONVOLUTION - 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x.mT)[..., : x.shape[1]].mT)


class Mixer(nn.Module):
    """What takes the place of attention."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule
        self.q, self.k, self.v, self.o = (linear(WIDTH, WIDTH) for _ in range(4))
        if rule != "softmax":
            self.q_conv, self.k_conv, self.v_conv = (ShortConvolution() for _ in range(3))
            self.norm = nn.RMSNorm(HEAD, eps=EPS)
        if rule == "delta":
            self.beta = linear(WIDTH, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.rule != "softmax":
            q, k, v = self.q_conv(q), self.k_conv(k), self.v_conv(v)
        q, k, v = (y.unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for y in (q, k, v))
        if self.rule == "softmax":
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.rule == "delta":
            o = self.norm(delta_rule(unit(q), unit(k), v, self.beta(x).sigmoid().mT.unsqueeze(-1)))
        else:
            o = self.norm((unit(q) @ unit(k).mT).tril() @ v)
        return self.o(o.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Mixer and gated MLP, each behind a norm and beside a residual."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.mixer_norm, self.mlp_norm = nn.RMSNorm(WIDTH, eps=EPS), nn.RMSNorm(WIDTH, eps=EPS)
        self.mixer = Mixer(rule)
        self.gate, self.up, self.down = linear(WIDTH, HIDDEN), linear(WIDTH, HIDDEN), linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x))
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    """Symbols [batch, time] to logits [batch, time, symbols]."""

    def __init__(self, symbols: int, rule: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH) if rule == "softmax" else None
        self.blocks = nn.Sequential(*(Block(rule) for _ in range(LAYERS)))
        self.norm = nn.RMSNorm(WIDTH, eps=EPS)
        self.head = linear(WIDTH, symbols)
        # Convolutions keep PyTorch's own U(-1/2, 1/2).
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def read(path: str) -> "tuple[Tensor, Tensor, int]":
    """The training and the validation part as numbers of symbols, and how many symbols there are."""
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    numbers = {symbol: number for number, symbol in enumerate(sorted(set(text)))}
    tokens = torch.tensor([numbers[symbol] for symbol in text])
    middle = int(0.9 * len(tokens))
    return tokens[:middle], tokens[middle:], len(numbers)


def loss_of(model: nn.Module, windows: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of windows [batch, time + 1], in nats."""
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


def draw(tokens: Tensor) -> Tensor:
    """A batch of windows at random places."""
    starts = torch.randint(len(tokens) - CONTEXT, (BATCH, 1))
    return tokens[starts + torch.arange(CONTEXT + 1)]


@torch.no_grad()
def evaluate(model: nn.Module, tokens: Tensor) -> float:
    """Mean loss over windows that do not overlap; every symbol but the first is predicted once."""
    targets = len(tokens) - 1
    full = targets // CONTEXT
    starts = CONTEXT * torch.arange(full)
    windows = tokens[starts[:, None] + torch.arange(CONTEXT + 1)]
    total = sum(loss_of(model, batch, "sum").item() for batch in windows.split(EVAL_BATCH))
    if targets % CONTEXT:
        total += loss_of(model, tokens[None, full * CONTEXT :], "sum").item()
    return total / targets


def rate(step: int, steps: int) -> float:
    """Factor of the peak learning rate at a step, counted from 1: linear warm-up, then cosine."""
    if step <= RATE_WARM_UP:
        return step / RATE_WARM_UP
    progress = (step - RATE_WARM_UP) / max(1, steps - RATE_WARM_UP)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def main() -> None:
    """Trains, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the text file")
    parser.add_argument("--rule", choices=("delta", "additive", "softmax"), default="delta")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--evaluate", action="store_true", help="evaluate at the end")
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        parser.error(f"--steps must be above {WARM_UP}: speed is measured after so many")

    torch.manual_seed(arguments.seed)
    training, validation, symbols = read(arguments.data)
    if min(len(training), len(validation)) <= CONTEXT:
        sys.exit(f"{arguments.data} is too short for windows of {CONTEXT} characters")
    model = Model(symbols, arguments.rule)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices}, {"params": gains, "weight_decay": 0.0}]
    # Fused is PyTorch's fastest on a CPU.
    optimiser = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.1, fused=True)

    began = last_loss = 0.0
    for step in range(1, arguments.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * rate(step, arguments.steps)
        loss = loss_of(model, draw(training))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % LOG_EVERY == 0 or step == arguments.steps:
            last_loss = loss.item()
        if step == WARM_UP:
            began = time.perf_counter()
    seconds = time.perf_counter() - began

    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_second": (arguments.steps - WARM_UP) * BATCH * CONTEXT / seconds,
        "train_loss": last_loss,
    }
    if arguments.evaluate:
        result["eval_loss"] = evaluate(model, validation)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
