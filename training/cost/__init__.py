"""What a run costs before it is started: operations, memory, hours; counted, and never run."""
