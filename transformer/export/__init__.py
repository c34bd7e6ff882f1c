"""Models for engines that serve: folded into a plain Transformer, converted, verified."""
