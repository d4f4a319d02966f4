"""The commands of each kind: names, parameters, help. What they do is imported from `weightless.commands` when one is run."""
