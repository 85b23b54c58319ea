"""What the stage that builds is made of: sources, wheels, workplace, order, checks, records."""
