"""`dmd2 data`: look at a data source, or write it as shards."""
