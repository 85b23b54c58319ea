"""What the stage that locks is made of: channels, pins, what of an old lock stays, the halves."""
