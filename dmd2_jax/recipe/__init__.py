"""From a config to what it names: family, data, weights, mesh, a distillation."""
