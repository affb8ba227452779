"""python -m hero_mini"""

import sys

try:
    from hero_mini.cli import main

    status = main()
except KeyboardInterrupt:  # before there was anything to lose
    status = 130
sys.exit(status)
