"""Runs `diffem train` and prints its peak memory in bytes: `python -m bench.peak OVERRIDE …`.

The peak is VmHWM of Linux: that of this process alone, which ru_maxrss of a child is not.
"""

import re
from pathlib import Path

from diffem.cli.launch import main

STATUS = Path("/proc/self/status")

if __name__ == "__main__":
    main()
    found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text(encoding="utf-8"))
    print(f"peak {1024 * int(found[1])}" if found else "peak unknown")
