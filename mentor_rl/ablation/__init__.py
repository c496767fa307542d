"""Ablations and sweeps: arms, the runs behind them, and what they say together."""
