"""The paper's effects in miniature: paired runs over seeds, measured, and the page that says so."""
