"""``python -m compsearch``."""

from compsearch.cli import main

if __name__ == "__main__":
    main()
