"""`python -m tests.fuzz`; see `campaign`."""

from tests.fuzz.campaign import main

if __name__ == "__main__":
    main(prog_name="python -m tests.fuzz")
