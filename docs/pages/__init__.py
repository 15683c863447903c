"""The pages of docs/ that are made from code and from other pages."""
