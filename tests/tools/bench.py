"""How fast is the trainer? Compared with the bare emulator and with a textbook loop, in alternating rounds.

    python tests/bench.py [--rounds 5] [--seconds 10]

Machines are shared and their clocks wander, so only the ratios within one run mean anything.
"""
import argparse
import multiprocessing
import os
import sys
import time
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import pg_pong

import gymnasium
import numpy as np
import textbook


def bare(connection, seconds):
    """Process: steps the emulator with random actions and frame skips and looks at nothing. Sends the steps/s."""
    env = pg_pong.make_env().unwrapped
    rng = np.random.default_rng(0)
    actions = [env._action_set[pg_pong.UP], env._action_set[pg_pong.DOWN]]
    env.reset(seed=0)
    connection.send("ready")
    connection.recv()
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        if env.ale.game_over():
            env.reset()
        action = actions[rng.random() < 0.5]
        for _ in range(rng.integers(2, 5)):
            env.ale.act(action)
        steps += 1
    connection.send(steps / elapsed)


def bench_bare(count, seconds):
    context, connections = multiprocessing.get_context("spawn"), []
    for _ in range(count):
        ours, theirs = context.Pipe()
        context.Process(target=bare, args=(theirs, seconds), daemon=True).start()
        connections.append(ours)
    for command in "start", None:
        answers = [connection.recv() for connection in connections]
        if command:
            for connection in connections:
                connection.send(command)
    return sum(answers)


def bench_textbook(seconds):
    """One whole episode after another, each with its share of an update every ten; at least for that long."""
    env = gymnasium.make("ALE/Pong-v5", frameskip=(2, 5))
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    W = [rng.standard_normal((200, 6400)) / 80, rng.standard_normal(200) / 200**0.5]
    cache, total = [np.zeros_like(w) for w in W], [np.zeros_like(w) for w in W]
    steps, episodes, start = 0, 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        X, Hs, ps, ups, rewards = textbook.play(env, *W, rng)
        advantages, G = np.zeros(len(rewards)), 0.0
        for t in range(len(rewards) - 1, -1, -1):
            G = rewards[t] + (0 if rewards[t] else 0.99 * G)
            advantages[t] = G
        advantages = (advantages - advantages.mean()) / advantages.std()
        for t, g in zip(total, textbook.backward(*W, X, Hs, (ups - ps) * advantages)):
            t += g
        steps, episodes = steps + len(rewards), episodes + 1
        if episodes % 10 == 0:
            for w, c, t in zip(W, cache, total):
                c[:] = 0.99 * c + 0.01 * t**2
                w += 1e-4 * t / (np.sqrt(c) + 1e-5)
                t[:] = 0
    return steps / elapsed


def memory_of(pids):
    """Proportional set size in MB: shared pages are counted once in all."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


def bench_trainer(workers, seconds):
    """Whole batches for at least that long, after a first one as warm-up. Returns (steps/s, peak MB)."""
    hyperparameters = dict(batch_size=10, learning_rate=1e-4, gamma=0.99, decay_rate=0.99)
    run, start, peak = pg_pong.new_run(0, hyperparameters), None, 0.0
    learning = pg_pong.learn(run, workers, pg_pong.share(run.model, 10))
    for _ in learning:
        if start is None:
            start, start_steps = time.perf_counter(), run.steps
        if os.path.exists("/proc/self/smaps_rollup"):
            peak = max(peak, memory_of([os.getpid()] + [p.pid for p in multiprocessing.active_children()]))
        if (elapsed := time.perf_counter() - start) > seconds:
            break
    learning.close()
    return (run.steps - start_steps) / elapsed, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="per measurement (default 10)")
    args = parser.parse_args()
    cores = pg_pong.available_cores()
    counts = sorted({1, 2, cores})
    rates = {}
    for number in range(args.rounds):
        row = {f"bare emulator x{n}": bench_bare(n, args.seconds) for n in counts}
        row["textbook loop"] = bench_textbook(args.seconds)
        for n in counts:
            row[f"trainer x{n}"], peak = bench_trainer(n, args.seconds)
            rates.setdefault(f"memory x{n}", []).append(peak)
        print(f"round {number + 1}:", ", ".join(f"{k} {v:.0f}" for k, v in row.items()), flush=True)
        for name, rate in row.items():
            rates.setdefault(name, []).append(rate)

    print(f"\nmedians of {args.rounds} rounds, steps/s, {cores} cores")
    for name in row:
        print(f"{name:20} {median(rates[name]):8.0f}")
    for n in counts:
        trainer = rates[f"trainer x{n}"]
        of_bare = median(a / b for a, b in zip(trainer, rates[f"bare emulator x{n}"]))
        of_textbook = median(a / b for a, b in zip(trainer, rates["textbook loop"]))
        print(f"trainer x{n}: {of_bare:.2f} of the bare emulator x{n}, {of_textbook:.1f} times the textbook loop, "
              f"peak memory {max(rates[f'memory x{n}']):.0f} MB")


if __name__ == "__main__":
    main()
