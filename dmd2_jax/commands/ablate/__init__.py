"""`dmd2 ablate`: variants times seeds, in one table."""
