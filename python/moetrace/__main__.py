"""``python -m moetrace`` is the command ``moetrace``."""

from moetrace.cli import main

if __name__ == "__main__":
    main()
