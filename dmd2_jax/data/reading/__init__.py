"""What sources read with: images from bytes, bytes from folders, zips and record files."""
