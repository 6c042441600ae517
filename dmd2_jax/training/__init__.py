"""Training a student or a teacher in a run folder."""
