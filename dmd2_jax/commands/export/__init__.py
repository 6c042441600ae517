"""`dmd2 export`: a student as a diffusers folder."""
