"""The read side: folds of the log into tables that people query."""
