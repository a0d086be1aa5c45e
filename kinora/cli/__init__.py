"""The command line: one file per noun, one place where errors become exit codes."""
