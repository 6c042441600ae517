"""One file a kind of damage, found by its name.

Each has NAME, a row of the table; TRIES, how many a whole run makes; and attempt(dice, folder),
which harms something below an empty folder, asks the product and returns a `Try`.
"""
