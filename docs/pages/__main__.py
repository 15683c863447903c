"""`python -m docs.pages` writes docs/errors.md, docs/decisions/README.md and a table of docs/backends.md."""

from docs.pages import backends, decisions, errors

for page in (errors, decisions, backends):
    page.PAGE.write_text(page.page())
