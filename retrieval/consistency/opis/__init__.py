"""How far classes are apart at one threshold: OPIS, its noise floor, the estimate without noise, paired tests."""
