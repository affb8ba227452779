"""python -m hero_mini"""

import signal
import sys

try:
    from hero_mini.cli import main

    status = main()
except KeyboardInterrupt:  # before there was anything to lose
    status = 130
if status == 130:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever presses Ctrl-C twice would see Python's own shutdown
sys.exit(status)
