"""cli: the click tool, one module a topic. No SQL of its own; nothing heavy is imported before a command needs it."""
