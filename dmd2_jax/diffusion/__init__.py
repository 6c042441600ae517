"""The diffusion floor: schedules, prediction types, guidance and the teacher's samplers."""
