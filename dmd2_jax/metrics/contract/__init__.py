"""What a metric's file declares, and how metrics are found and computed."""
