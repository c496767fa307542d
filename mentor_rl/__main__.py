"""``python -m mentor_rl``: the command line for launchers: ``torchrun --nproc-per-node 2 -m mentor_rl train RECIPE``."""

from mentor_rl.cli import main

main()
