"""Evidence for a suppression: cross-fitted trap heads, three operating points, controls, refusal."""
