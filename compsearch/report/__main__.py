"""``python -m compsearch.report results/ [more folders] [output=folder]``."""

import sys

from compsearch.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "report")
    main()
