"""`dmd2 convert`: weights from one format to another."""
