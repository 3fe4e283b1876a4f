"""A file for each library; CONTENDERS are its ways."""
