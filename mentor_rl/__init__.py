"""Recipes, GRPO, evaluation, export and reports for MENTOR policies."""
