"""`python -m penstock`, which is the command `penstock`; `torchrun -m penstock train …` starts ranks with it."""

from penstock.command import main

if __name__ == "__main__":
    main(prog_name="penstock")
