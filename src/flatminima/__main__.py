"""`python -m flatminima`."""

from flatminima.cli import main

if __name__ == "__main__":
    main()
