"""python -m hero_mini"""

import sys

from hero_mini.cli import main

sys.exit(main())
