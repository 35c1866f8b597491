"""A report written as LaTeX, HTML, Markdown, CSV and for a terminal. Nothing is computed here."""
