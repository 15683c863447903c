"""The page docs/errors.md, made from the code."""
