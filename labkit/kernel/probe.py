"""placeholder"""
def has_fentry(): return False
