"""The study of docs/ablations.md: which parts of the recipe matter, at the scale of digits."""
