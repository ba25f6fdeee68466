"""The figures that a reader moves: one module per chapter, named as its experiments are. No torch here."""
