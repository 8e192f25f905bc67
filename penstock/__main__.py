"""`python -m penstock`, which is the command `penstock`; `torchrun -m penstock train …` starts ranks with it."""

from penstock.command import run

if __name__ == "__main__":
    run()
