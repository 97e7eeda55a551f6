"""One algorithm, one module; each with a card NAME.md beside it."""
