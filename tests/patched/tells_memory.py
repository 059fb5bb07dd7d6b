"""pg_pong.py, but at its end it prints how many kB of memory it had at most.

Linux knows it as VmHWM. What the resource module says would begin with the memory of pytest.
"""
import sys
from pathlib import Path

import pg_pong

if __name__ == "__main__":
    status = pg_pong.main()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            print(line)
    sys.exit(status)
