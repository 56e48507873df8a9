"""`python -m tunesmith` is `tune`, for launchers that start modules."""

from .cli.app import main

if __name__ == "__main__":
    main()
