"""Mixed precision: which groups of nodes must stay in higher precision so that the gates hold, at the least cost.

    groups      the nodes that are quantized together, and what quantizing them saves
    search      the fewest groups to keep, by trials

Stages measure; this package only decides.
"""
