"""Numbers that say how well pictures follow their prompts."""
