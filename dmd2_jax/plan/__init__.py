"""What a recipe costs on machines that need not be there."""
