"""Recipes, GRPO, evaluation, export and reports for MENTOR policies."""

import os

# Read when trl and huggingface_hub are imported: no reports about runs, no notes about experimental features.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
