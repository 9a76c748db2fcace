"""The model of zoo/deltanet in plain PyTorch: what fwp-host is compared with.

    python associative.py [--steps N] [--seed N] [--threads N]

Pairs of a key and a value are written into fast weights by the delta rule, one after another; then one key is asked.
DPFP-1 with sum normalisation, 20 keys, batch 32, sequences of 40 pairs, Adam: as the recipe says. Only the random
draws differ. The loop over the pairs is PyTorch's eager mode, as the authors' own program without its GPU kernel.

Prints one JSON object on stdout: steps_per_second (wall time from the end of step WARM_UP to the end of the last one:
batches, forward, backward and optimiser), train_loss and parameters.
"""

import argparse
import json
import os
import time

import torch
from torch import Tensor, nn

KEYS, LENGTH, BATCH = 20, 40, 32
KEY_DIM, EMBEDDING = 64, 22 * KEYS // 10
RATE, EPS = 1e-3, 1e-6

# Steps before speed is measured, as the comparison takes them of fwp-host.
WARM_UP = 20
# Steps between two looks at the loss.
LOG_EVERY = 10


def dpfp(x: Tensor) -> Tensor:
    """Products of shifted halves, divided by their sum."""
    u = torch.cat([x.relu(), (-x).relu()], -1)
    u = u * u.roll(1, -1)
    return u / (u.sum(-1, keepdim=True) + EPS)


def uniform(layer: nn.Linear, bound: float) -> nn.Linear:
    """The layer with weights from U(-bound, bound)."""
    nn.init.uniform_(layer.weight, -bound, bound)
    return layer


class Model(nn.Module):
    """Keys and values [batch, pairs], one query [batch] to the value [batch, KEYS]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(KEYS, EMBEDDING)
        width, bound = KEYS + EMBEDDING, KEY_DIM**-0.5
        self.key = uniform(nn.Linear(width, KEY_DIM), bound)
        self.query = uniform(nn.Linear(EMBEDDING, KEY_DIM), bound)
        self.beta = nn.Linear(width, 1)

    def forward(self, keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
        v = nn.functional.one_hot(values, KEYS).float()
        x = torch.cat([v, self.embedding(keys)], -1)
        k, beta = dpfp(self.key(x)), self.beta(x).sigmoid()
        state = x.new_zeros(len(keys), KEYS, k.shape[-1])
        for k_t, v_t, beta_t in zip(k.unbind(1), v.unbind(1), beta.unbind(1)):
            read = (state @ k_t.unsqueeze(-1)).squeeze(-1)
            state = torch.baddbmm(state, (beta_t * (v_t - read)).unsqueeze(-1), k_t.unsqueeze(1))
        return (state @ dpfp(self.query(self.embedding(query))).unsqueeze(-1)).squeeze(-1)


def draw() -> "tuple[Tensor, Tensor, Tensor, Tensor]":
    """Keys, values, a key that occurs, and its last value."""
    keys, values = torch.randint(KEYS, (2, BATCH, LENGTH))
    query = keys.gather(1, torch.randint(LENGTH, (BATCH, 1)))
    last = LENGTH - 1 - (keys == query).flip(1).int().argmax(1, keepdim=True)
    return keys, values, query.squeeze(1), values.gather(1, last).squeeze(1)


def main() -> None:
    """Trains, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        parser.error(f"--steps must be above {WARM_UP}: speed is measured after so many")
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    model = Model()
    # Fused is PyTorch's fastest on a CPU.
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    began = last_loss = 0.0
    for step in range(1, arguments.steps + 1):
        keys, values, query, target = draw()
        wanted = nn.functional.one_hot(target, KEYS).float()
        loss = 0.5 * (model(keys, values, query) - wanted).square().sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % LOG_EVERY == 0 or step == arguments.steps:
            last_loss = loss.item()
        if step == WARM_UP:
            began = time.perf_counter()
    seconds = time.perf_counter() - began
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps_per_second": (arguments.steps - WARM_UP) / seconds,
        "train_loss": last_loss,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
