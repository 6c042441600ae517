"""Config files and the changes to them; knows no jax."""
