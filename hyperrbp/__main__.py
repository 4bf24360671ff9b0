"""``python -m hyperrbp``."""

from hyperrbp.cli import main

if __name__ == "__main__":
    main()
