"""Files that are whole or absent, progress bars, tables of text."""
