def missing(rule, documents):
    import math

    rest = str(rule).partition("@")[2]
    return math.floor((1 - float(rest or 1)) * documents + 1e-9)
