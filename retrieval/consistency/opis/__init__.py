"""How far classes are apart at one threshold: OPIS, its noise floor, the debiased estimate, paired tests."""
