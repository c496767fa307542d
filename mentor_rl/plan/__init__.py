"""What a recipe needs before it is run: `mentor plan`."""
