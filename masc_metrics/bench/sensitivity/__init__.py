"""How far wrong masks move the scores, the ranking of methods and the agreement with people."""
