"""It imports pg_pong.py, multiplies large matrices, and prints how many threads that took.

Before, it prints what numpy's library finds in the environment when it is loaded.
"""
import os
import sys

VARIABLES = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]


def note(event, args):
    if event == "import" and args[0] == "numpy":
        print(*[f"{name}={os.environ[name]}" for name in VARIABLES])


if __name__ == "__main__":
    sys.addaudithook(note)
    from pg_pong import np

    matrix = np.ones((2000, 2000), np.float32)
    matrix @ matrix
    print("threads:", len(os.listdir("/proc/self/task")))
