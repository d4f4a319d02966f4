"""What is wrong on this machine, and the cure of each thing: pure checks, and the one module that looks (`examination`)."""
