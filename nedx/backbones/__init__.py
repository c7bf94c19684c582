"""Networks whose layers can be tapped."""
