"""`python -m tests.nightly.fuzz`; see `campaign`."""

from tests.nightly.fuzz.campaign import main

if __name__ == "__main__":
    main(prog_name="python -m tests.nightly.fuzz")
