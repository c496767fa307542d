"""``python -m mentor_rl``: the command line for launchers, as in ``torchrun --nproc-per-node 2 -m mentor_rl train``."""

from mentor_rl.cli import main

main()
