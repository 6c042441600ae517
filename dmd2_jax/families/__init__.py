"""Model families: a network with its schedule, prediction type, conditioning and weight names."""
