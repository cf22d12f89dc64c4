"""`python train.py [GROUP=CHOICE …] [KEY=VALUE …]`: the run is in diffem/cli/train.py."""

from diffem.cli.main import train

if __name__ == "__main__":
    train()
