"""`python -m docs.error_page` writes docs/errors.md."""

from docs.error_page.page import PAGE, page

PAGE.write_text(page())
