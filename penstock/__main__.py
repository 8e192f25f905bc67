"""`python -m penstock` runs the command `penstock`. `torchrun -m penstock train …` uses it to start ranks."""

from penstock.command import run

if __name__ == "__main__":
    run()
