"""Making a draft model that agrees with a target."""
