"""What the commands do, one module each. Imported when the command is run."""
