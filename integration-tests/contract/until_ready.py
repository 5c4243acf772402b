"""Waits until the API answers. Arguments: an address, and the process that serves it: once that is gone, nothing is waited for."""

import os
import sys
import time
import urllib.error
import urllib.request

address, process = sys.argv[1], int(sys.argv[2])
until = time.monotonic() + 120
while time.monotonic() < until:
    try:
        os.kill(process, 0)
        with urllib.request.urlopen(address, timeout=5):
            sys.exit(0)
    except ProcessLookupError:
        sys.exit("carillon has ended")
    except (urllib.error.URLError, OSError):
        time.sleep(0.2)
sys.exit(f"{address} does not answer")
