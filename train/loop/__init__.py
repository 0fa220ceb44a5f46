"""From examples to moved members, step after step, and how a run stops and goes on."""
