"""`python -m docs.pages` writes docs/errors.md and docs/decisions/README.md."""

from docs.pages import decisions, errors

for page in (errors, decisions):
    page.PAGE.write_text(page.page())
