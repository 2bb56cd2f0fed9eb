"""Contents of reports: wording, tables, charts, and the templates of the HTML page."""
