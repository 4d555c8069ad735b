"""Files that are whole or absent, what is wrong with a file, progress bars, tables, figures."""
